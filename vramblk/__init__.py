"""vramblk serves GPU memory as an NBD block device."""

import os

__version__ = "0.1.0"

# One thread per core that OpenBLAS would start with numpy: nothing here uses it, and a process that
# forks must have no threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
