"""Times of stages: what is recorded comes out again, and a server that is not profiled records nothing."""

from __future__ import annotations

import os
import random
import statistics

import pytest

from vramblk.executor import Executor
from vramblk.nbd.transmission import Parser
from vramblk.serving.pending import Submitter
from vramblk.serving.receive import ReceiveLane
from vramblk.serving.replyqueue import ReplyQueue
from vramblk.serving.submission import Submission
from vramblk.shared import stages
from vramblk.shared.stages import Stage, StageTimes


@pytest.mark.parametrize("scale", (10, 1000, 10**5, 10**8))
def test_median_and_total_are_those_of_what_was_recorded(scale: int) -> None:
    generator = random.Random(scale)
    times = [int(generator.lognormvariate(0, 1) * scale) + 1 for _ in range(5001)]
    cells = StageTimes(1)
    for time in times:
        cells.engine.record(Stage.FINISH, time)
    found = cells.snapshot().stage(Stage.FINISH)
    assert (found.samples, found.total_ns) == (5001, sum(times))
    assert found.median_ns == pytest.approx(statistics.median(times), rel=0.04)


@pytest.mark.parametrize("time", (0, 1, 15, 16, 31, 32, 33, 10**6 + 1, 2**40 - 1, 2**40, 2**60))
def test_every_time_has_a_bucket_near_it(time: int) -> None:
    cells = StageTimes(1)
    cells.workers[0].record(Stage.SEND, time)
    found = cells.snapshot().stage(Stage.SEND)
    assert found.samples == 1
    assert found.median_ns == pytest.approx(min(time, 2**40), rel=0.04)
    assert all(cells.snapshot().stage(stage).samples == (stage is Stage.SEND) for stage in Stage)


def test_a_difference_is_what_came_in_between() -> None:
    times = StageTimes(3)
    times.engine.count_batch(7)
    times.engine.record(Stage.DECODE, 10**9)
    before = times.snapshot()
    times.engine.count_batch(4)
    times.engine.count_batch(5)
    times.workers[0].record(Stage.RECEIVE, 100)
    times.workers[2].record(Stage.RECEIVE, 300)
    found = times.snapshot() - before
    assert (found.batches, found.requests) == (2, 9)
    assert found.stage(Stage.DECODE).samples == 0
    assert (found.stage(Stage.RECEIVE).samples, found.stage(Stage.RECEIVE).total_ns) == (2, 400)


def test_what_a_batch_gathers_is_one_sample() -> None:
    times = StageTimes(1)
    call = times.engine.timed(lambda number, *, more: number + more, Stage.COPY)
    assert [call(1, more=2), call(3, more=4)] == [3, 7]
    assert times.engine.gathered[Stage.COPY] > 0
    times.engine.close((Stage.COPY, Stage.FINISH))
    times.engine.close((Stage.COPY, Stage.FINISH))
    assert times.snapshot().stage(Stage.COPY).samples == 1
    assert times.snapshot().stage(Stage.FINISH).samples == 0


def test_a_failing_call_is_timed_too() -> None:
    times = StageTimes(1)
    with pytest.raises(ZeroDivisionError):
        times.engine.timed(lambda: 1 // 0, Stage.LAUNCH)()
    assert times.engine.gathered[Stage.LAUNCH] > 0


def test_recorders_of_forked_processes_do_not_disturb_each_other() -> None:
    times = StageTimes(2)
    children = []
    for recorder in (times.engine, *times.workers):
        if pid := os.fork():
            children.append(pid)
            continue
        for _ in range(20_000):
            recorder.record(Stage.PARSE, 50)
        os._exit(0)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert times.snapshot().stage(Stage.PARSE).samples == 60_000


def test_nothing_is_wrapped_where_nobody_asked() -> None:
    """Off, the data path calls the very functions that stand in the sources."""
    assert stages.active is None
    for owner, names in {
        ReceiveLane: ["receive"],
        Parser: ["next"],
        Submission: ["reply", "run", "read", "read_piece", "write", "zero"],
        Submitter: ["collect", "publish"],
        ReplyQueue: ["flush"],
        Executor: ["turn", "_decode", "_execute"],
    }.items():
        for name in names:
            assert getattr(owner, name).__qualname__ == f"{owner.__name__}.{name}"
