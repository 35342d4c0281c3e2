"""Runs the pressure test again and again with one safeguard left out at a time; prints a row for docs/swap.md each.

    python -m tests.vm.matrix [--runs N] [--jobs N] [SAFEGUARD ...]

SAFEGUARD is mlock, io_flusher, oom, fifo, min_free, several of them joined by commas, or "none" for all in place.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import rig

EACH = ("none", "mlock", "io_flusher", "oom", "fifo", "min_free")


def outcome(build: Path, without: str) -> str:
    """One run in a word: good, hangs, panic, or what failed."""
    settings = {"VM_WITHOUT": "nothing" if without == "none" else without}
    result = rig.run("control.sh", build, environment=settings, silence_s=90)
    if result.good:
        return "good"
    if result.ended in ("silent", "late"):
        return "hangs"
    return result.ended if result.ended == "panic" else (result.failed or [result.ended])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("safeguards", nargs="*", metavar="SAFEGUARD", default=[])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vramblk-matrix-", dir="/dev/shm") as directory:
        rig.build(Path(directory))
        for without in chosen.safeguards or EACH:
            with ThreadPoolExecutor(chosen.jobs) as pool:
                results = list(pool.map(outcome, [Path(directory)] * chosen.runs, [without] * chosen.runs))
            counts = ", ".join(f"{count} {what}" for what, count in Counter(results).most_common())
            print(f"| without {without} | {chosen.runs} runs: {counts} |", flush=True)


if __name__ == "__main__":
    main()
