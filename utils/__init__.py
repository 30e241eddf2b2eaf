"""What the scripts share.

PyTorch is imported here, before any module wants it, without the search for garbage among the 275,000 objects that it
makes: they all stay, and looking through them again and again, and once more when the process ends, makes the start and
the end of the predicting scripts half as long again.
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
