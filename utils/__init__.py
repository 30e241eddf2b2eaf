"""The layers below the scripts.

PyTorch is imported here first, with garbage collection disabled: it allocates some 275,000 objects that all stay, and
collections among them make a script start and end 0.4 s later, a tenth of the time of 30 images by plain softmax.
"""

import gc
import sys

if gc.isenabled() and "torch" not in sys.modules:
    gc.disable()
    try:
        import torch  # noqa: F401

        gc.freeze()
    finally:
        gc.enable()

# The mask value of a colour (r, g, b) that is not grey is RGB_OFFSET + 65536 r + 256 g + b, above every grey value.
RGB_OFFSET = 1 << 24

# The class index of pixels that do not count, in (H, W) uint8 class indices of ground truth: losses, scores and counts
# leave them out.
IGNORED_CLASS = 255
