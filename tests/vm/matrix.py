"""Runs a case again and again with a safeguard left out, and prints how often it held.

The numbers are those of docs/design/swap-safety.md.

    python -m tests.vm.matrix [--case CASE] [--set NAME=VALUE] [--runs N [--rounds N]] [--jobs N] [--results FILE] [WITHOUT ...]

WITHOUT is a name of tests/without.py, several joined by commas, or "nothing"; mlock, io_flusher, oom, fifo and min_free
one at a time, and nothing, if none is given. CASE is control.sh, twice the RAM through swap, or another of guest/cases.
Each run is a line of JSON in FILE; what FILE has already is not run again, and the table is made of all of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from . import rig

EACH = ("nothing", "mlock", "io_flusher", "oom", "fifo", "min_free")
#: The pressure of control.sh has no pauses: ``longest_silence_s`` of the good runs is a third of this.
CONTROL_SILENCE_S = 60
GOOD = "good"
ROUND = "twice the RAM, every page as written"


def outcome(result: rig.Result) -> str:
    """A run in a word: good, hangs, panic, or what failed."""
    if result.good:
        return GOOD
    if result.ended in ("silent", "late"):
        return "hangs"
    return result.ended if result.ended == "panic" else (result.failed or [result.ended])[0]


class Matrix:
    """Runs of one case, and the file that keeps them."""

    def __init__(self, case: str, settings: dict[str, str], results: Path) -> None:
        self._of = {"case": case, "settings": settings}
        self._results = results
        self._lock = Lock()
        self._under_way: Counter[str] = Counter()

    def kept(self) -> list[dict[str, Any]]:
        if not self._results.exists():
            return []
        return [json.loads(line) for line in self._results.read_text().splitlines()]

    def work(self, build: Path, each: list[str], runs: int, rounds: int) -> None:
        """Run what has been run least until all have been run so often."""
        while True:
            with self._lock:
                done = Counter(line["without"] for line in self.kept() if self._of.items() <= line.items())
                done.update(self._under_way)
                without = min(each, key=lambda name: done[name])
                count = min(rounds, runs - done[without])
                if count <= 0:
                    return
                self._under_way[without] += count
            self._run(build, without, count)
            with self._lock:
                self._under_way[without] -= count

    def _run(self, build: Path, without: str, rounds: int) -> None:
        case, settings = str(self._of["case"]), dict(self._of["settings"])
        control = case == "control.sh"
        result = rig.run(
            case, build, ram_mib=rig.RAM_MIB_OF.get(case, rig.RAM_MIB), swap_mib=rig.SWAP_MIB_OF.get(case, rig.SWAP_MIB),
            environment={**settings, "VM_WITHOUT": without, "VM_ROUNDS": str(rounds)},
            silence_s=CONTROL_SILENCE_S if control else rig.SILENCE_S,
        )  # fmt: skip
        outcomes = [GOOD] * result.passed.count(ROUND) if control else []
        if not result.good or not outcomes:
            outcomes.append(outcome(result))
            with self._results.with_suffix(f".{without}.txt").open("a") as file:
                file.write(result.output)
        line = {
            **self._of, "seconds": round(result.seconds / len(outcomes), 1),
            "longest_silence_s": round(result.longest_silence_s, 1), "notes": result.notes, "without": without,
        }  # fmt: skip
        with self._lock, self._results.open("a") as file:
            for each in outcomes:
                print(json.dumps({**line, "outcome": each}), file=file)


def table(lines: list[dict[str, Any]]) -> str:
    """A row for each case and safeguard."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        settings = " ".join(f"{name}={value}" for name, value in sorted(line["settings"].items()))
        rows.setdefault((f"{line['case']} {settings}".strip(), line["without"]), []).append(line)
    text = ["| Case | Without | Runs | Outcomes | Seconds | Longest silence |", "| --- | --- | --- | --- | --- | --- |"]
    for (case, without), found in rows.items():
        counts = ", ".join(f"{count} {what}" for what, count in Counter(line["outcome"] for line in found).most_common())
        seconds = [line["seconds"] for line in found]
        silence = [line["longest_silence_s"] for line in found if line["outcome"] == GOOD]
        text.append(
            f"| {case} | {without} | {len(found)} | {counts} | {min(seconds):.0f} to {max(seconds):.0f} | "
            f"{f'{max(silence):.0f} s' if silence else ''} |"
        )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("without", nargs="*", metavar="WITHOUT", default=[])
    parser.add_argument("--case", default="control.sh")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1, help="of them in one boot of a guest; control.sh only")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("/tmp/vramblk-matrix.jsonl"))
    chosen = parser.parse_args()
    matrix = Matrix(chosen.case, dict(each.split("=", 1) for each in chosen.set), chosen.results)
    with tempfile.TemporaryDirectory(prefix="vramblk-matrix-", dir="/dev/shm") as directory:
        rig.build(Path(directory))
        each = chosen.without or list(EACH)
        with ThreadPoolExecutor(chosen.jobs) as pool:
            for job in [
                pool.submit(matrix.work, Path(directory), each, chosen.runs, chosen.rounds) for _ in range(chosen.jobs)
            ]:
                job.result()
    print(table(matrix.kept()))


if __name__ == "__main__":
    main()
