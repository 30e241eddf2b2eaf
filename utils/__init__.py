"""The layers below the scripts.

An older Python than the required one is told so here, in a syntax that it can read, before any file that it cannot.

PyTorch is imported here first, with garbage collection disabled: it allocates some 275,000 objects that all stay, and
collections among them make a script start and end 0.4 s later, a tenth of the time of 30 images by plain softmax.
"""

import gc
import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write("Error: Python 3.10 or newer is required, this is %d.%d\n" % sys.version_info[:2])  # noqa: UP031
    sys.exit(2)

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
