"""What the scripts share.

PyTorch is imported here, before any module wants it, without the search for garbage among the 275,000 objects that it
makes: they all stay, and looking through them again and again, and once more when the process ends, makes a start and
an end half as long again.
"""

import gc
import sys

if gc.isenabled() and "torch" not in sys.modules:
    gc.disable()
    import torch  # noqa: F401

    gc.freeze()
    gc.enable()
