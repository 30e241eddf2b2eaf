"""Arrays to maps: samples of an image's logits, and their per-pixel statistics at full size."""
