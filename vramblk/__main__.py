"""``python -m vramblk`` is the same as the command ``vramblk``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
