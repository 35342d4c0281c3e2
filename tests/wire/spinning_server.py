"""The server as it runs on a machine with many cores: it spins before it sleeps. Run like ``vramblk``.

SPIN_NS is for how long; with seconds it is as if there were always work.
"""

import os
import sys

from vramblk import cli
from vramblk.shared import spin

spin.ENOUGH_CORES = 1
spin.SPIN_NS = int(os.environ.get("SPIN_NS", spin.SPIN_NS))

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
