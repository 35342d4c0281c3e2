"""Run the test groups that this machine can do and say at the end what ran and what did not.

    python tests/run.py [GROUP ...]

Each group is a pytest run of its own, after ``tests/setup.sh GROUP``. The minutes that each takes are printed
first. With VRAMBLK_TEST_REQUIRE=all a skip is a failure, except in group gpu and for container tests marked
``needs_sys_resource``. The last line of the output is always 'N passed, N failed, N skipped'; the exit status is 0 only if
nothing failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Group:
    """One directory of tests; the timeouts are seconds for one test and for all of them.

    Attributes:
        parallel: its tests do not measure time and share nothing, so two of them may run at once.
        minutes: how long it takes on two cores without a GPU or KVM, as CONTRIBUTING.md says.
        by_name_only: too long to run with the others; it runs if it is named.
    """

    name: str
    minutes: int
    test_timeout_s: int
    total_timeout_s: int
    skips_are_failures: bool = True
    parallel: bool = False
    by_name_only: bool = False


GROUPS = (
    Group("unit", 9, 120, 1500, parallel=True),
    Group("wire", 21, 180, 2700),
    Group("page", 2, 300, 1800),
    Group("oclgrind", 3, 600, 3600),
    Group("container", 25, 900, 3600),
    Group("vm", 28, 1800, 10800, parallel=True),
    Group("intel_cpu", 2, 300, 1800, by_name_only=True),
    Group("qemu", 52, 4500, 4800, by_name_only=True),
    Group("gpu", 30, 600, 1800, skips_are_failures=False),
)
_NO_TESTS_COLLECTED = 5
_AT_ONCE = 2
_KILL_AFTER_S = 30


@dataclass
class Outcome:
    """Result of one group; ``reasons`` counts the messages of tests that did not run."""

    group: Group
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    required: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    note: str = ""

    @property
    def ran(self) -> int:
        return self.passed + self.failed - self.required


def has_tests(directory: Path) -> bool:
    return any(directory.rglob("test_*.py"))


def run_group(group: Group, require_all: bool, extra: list[str]) -> Outcome:
    """Run one group in a pytest of its own and read its report."""
    outcome = Outcome(group)
    directory = TESTS / group.name
    if not has_tests(directory):
        outcome.note = "no tests"
        return outcome
    # Without a time limit: a package manager that is ended in the middle leaves a machine that must be repaired.
    subprocess.run([TESTS / "setup.sh", group.name], check=False)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vramblk-tests-") as scratch:
        report = Path(scratch) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", str(directory), f"--junitxml={report}", "-o", "junit_family=xunit1",
            f"--timeout={group.test_timeout_s}", "-q", "-ra", "--durations=5",
            *(["-n", str(min(_AT_ONCE, os.cpu_count() or 1))] if group.parallel else []), *extra,
        ]  # fmt: skip
        status = _run(command, group.total_timeout_s)
        outcome.seconds = time.monotonic() - started
        if status == _NO_TESTS_COLLECTED:
            outcome.note = "no tests"
            return outcome
        if report.exists():
            _read_report(report, outcome, require_all and group.skips_are_failures)
    if status:
        outcome.note = {1: "", -1: "ended: it took too long"}.get(status, f"pytest ended with status {status}")
        if status < 0 or outcome.failed == outcome.required:
            outcome.failed += 1
            outcome.note = outcome.note or "pytest reported a failure that is in no test"
    return outcome


def _run(command: list[str], timeout_s: int) -> int:
    """Exit status of the command, or -1 if it had to be ended."""
    process = subprocess.Popen(command, cwd=TESTS.parent, start_new_session=True)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        for signal_number in (signal.SIGINT, signal.SIGKILL):
            os.killpg(process.pid, signal_number)
            try:
                process.wait(_KILL_AFTER_S)
                break
            except subprocess.TimeoutExpired:
                continue
        return -1
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(_KILL_AFTER_S)
        raise


def _read_report(report: Path, outcome: Outcome, skips_are_failures: bool) -> None:
    for case in ElementTree.parse(report).iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        elif skip is None:
            outcome.passed += 1
        else:
            why = skip.get("message", "")
            excused = outcome.group.name == "container" and _has_property(case, "needs_sys_resource")
            if excused:
                why = f"needs CAP_SYS_RESOURCE ({case.get('name')}): {why}"
            outcome.reasons[why] += 1
            if skips_are_failures and not excused:
                outcome.failed += 1
                outcome.required += 1
            else:
                outcome.skipped += 1


def _has_property(case: ElementTree.Element, name: str) -> bool:
    return any(found.get("name") == name for found in case.iter("property"))


def print_durations(groups: list[Group]) -> None:
    """How long the groups take, before the first one starts."""
    total = sum(group.minutes for group in groups if group.name != "gpu" or len(groups) == 1)
    print(f"about {total} minutes on two cores:")
    for group in groups:
        print(f"  {group.name:<11}{group.minutes:>3}" + (" at most, with a GPU" if group.name == "gpu" else ""), flush=True)


def print_table(outcomes: list[Outcome], require_all: bool) -> None:
    """Group, tests that ran, tests that did not, and why."""
    print(f"\n{'group':<11}{'ran':>6}{'failed':>8}{'skipped':>9}{'seconds':>9}  why")
    for outcome in outcomes:
        not_run = outcome.skipped + outcome.required
        reasons = [f"{count} x {why}" for why, count in outcome.reasons.most_common()]
        if outcome.required:
            reasons.insert(0, "VRAMBLK_TEST_REQUIRE=all: skips count as failures")
        if outcome.note:
            reasons.insert(0, outcome.note)
        first, *rest = reasons or [""]
        counts = f"{outcome.ran:>6}{outcome.failed:>8}{not_run:>9}{outcome.seconds:>9.0f}"
        print(f"{outcome.group.name:<11}{counts}  {first}".rstrip())
        for reason in rest:
            print(f"{'':<43}  {reason}")
    if require_all:
        print("every group but gpu is required (VRAMBLK_TEST_REQUIRE=all)")


def main() -> int:
    names = [group.name for group in GROUPS]
    by_name = " and ".join(group.name for group in GROUPS if group.by_name_only)
    parser = argparse.ArgumentParser(description="Run test groups.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(names)}; all but {by_name} by default")
    chosen, extra = parser.parse_known_args()
    if unknown := [name for name in chosen.groups if name not in names]:
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(names)}")
    requirement = os.environ.get("VRAMBLK_TEST_REQUIRE", "")
    if requirement not in ("", "all"):
        parser.error(f"VRAMBLK_TEST_REQUIRE={requirement}: allowed are all and nothing")
    groups = [group for group in GROUPS if group.name in chosen.groups or not (chosen.groups or group.by_name_only)]
    print_durations(groups)
    outcomes = []
    for group in groups:
        print(f"== {group.name}", flush=True)
        outcomes.append(run_group(group, requirement == "all", extra))
    print_table(outcomes, requirement == "all")
    passed, failed, skipped = (
        sum(getattr(outcome, what) for outcome in outcomes) for what in ("passed", "failed", "skipped")
    )
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
