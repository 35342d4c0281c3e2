"""Soak run: six clients with chaos around them, against a model of what each 16 bytes may hold.

    python -m tests.soak --seconds 600 --seed 7

Without --memory and --verify-reads the time is divided among PoCL and a mapped file, each with and
without checksums. Each round has a server of its own and ends so: the chaos ceases, everything is
answered, every block is read and compared, and SIGTERM ends the server with status 0 and without
processes left. The last line is a summary. The exit status is 1 after a wrong value, an answer that does
not come, or an end that is not clean; then the output has the history of the unit and the seed.

A seed repeats the choices, but not the timing. So a failure that is rare needs more than one run of it.

    --checkout DIR     serve another checkout with these tests
    --only death,stop  only some kinds of chaos
    --plant NAME       a fault on purpose, which must be found: see ``run.PLANTS``
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from pathlib import Path

from ..wire.harness import REPOSITORY
from .chaos import KINDS
from .connection import SoakFailure
from .run import MEMORIES, PLANTS, Plan, Result, soak

#: A round is no longer, so that what the model keeps stays small.
_LONGEST_ROUND_S = 40.0


def main() -> int:
    options = _options()
    memories = [options.memory] if options.memory else ["pocl", "map"]
    checks = [options.verify_reads == "on"] if options.verify_reads else [False, True]
    combinations = list(itertools.product(memories, checks))
    rounds = max(1, round(options.seconds / _LONGEST_ROUND_S / len(combinations) + 0.49)) * len(combinations)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    total = Result()
    for number in range(rounds):
        memory, verify_reads = combinations[number % len(combinations)]
        plan = Plan(
            seed=f"{seed}/{number}", seconds=options.seconds / rounds, memory=memory, verify_reads=verify_reads,
            size_mib=options.size_mib, workers=options.workers, checkout=options.checkout,
            chaos=tuple(options.only), plant=options.plant, keep_going=options.keep_going,
        )  # fmt: skip
        print(f"round {number + 1} of {rounds}: {plan.describe()}", flush=True)
        with tempfile.TemporaryDirectory(prefix="vramblk-soak-") as directory:
            try:
                result = soak(plan, Path(directory))
            except SoakFailure as failure:
                print(f"FAILED: {failure}\nseed: {seed}, round {number + 1}: {plan.describe()}")
                print(f"seed {seed}: failed in round {number + 1}; the rounds before it: {total}")
                return 1
        print(f"  {result}", flush=True)
        total += result
        if result.mismatches and not options.keep_going:
            print(f"seed: {seed}, round {number + 1}: {plan.describe()}")
            break
    print(f"seed {seed}: {total}")
    return 1 if total.mismatches else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="of all rounds together (default 600)")
    parser.add_argument("--seed", type=int, help="a number; default: a random one, which is printed")
    parser.add_argument(
        "--memory", choices=MEMORIES, help="gpu takes the first GPU; default: pocl and map in turn"
    )
    parser.add_argument(
        "--verify-reads",
        nargs="?",
        const="on",
        choices=("on", "off"),
        help="default: without and with in turn",
    )
    parser.add_argument("--size-mib", type=int, help="of the export; default: 8 to 64, by the seed")
    parser.add_argument(
        "--workers",
        type=lambda text: None if text == "auto" else int(text),
        default=3,
        help="auto: as many as the server chooses, and the engine has a local client, which it soon gives away",
    )
    parser.add_argument(
        "--checkout", type=Path, default=REPOSITORY, help="whose server runs; default: this one's"
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=KINDS,
        metavar="KIND,...",
        help=f"of {','.join(KINDS)}",
    )
    parser.add_argument("--plant", choices=PLANTS, help="a fault on purpose")
    parser.add_argument("--keep-going", action="store_true", help="go on after a wrong value")
    options = parser.parse_args()
    unknown = set(options.only) - set(KINDS)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}; allowed: {','.join(KINDS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
