"""Maps to numbers: uncertainty, segmentation, calibration, error detection, selective prediction."""
