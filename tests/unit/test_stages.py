"""Times of stages: what is recorded comes out again, and a server that is not profiled records nothing."""

from __future__ import annotations

import os
import random
import statistics
import struct

import pytest

from tests.unit.pool import Pool
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


def wrapped(pool: Pool) -> set[str]:
    """Names of methods of which an object of the data path has its own."""
    connection = pool.rigs[0].connection
    parts = [part for part in vars(connection).values() if hasattr(part, "__dict__")]
    parts += [connection, pool.submissions, pool.windows.engine]
    return {name for part in parts for name in vars(part) if callable(getattr(type(part), name, None))}


def test_nothing_is_wrapped_where_nobody_asked() -> None:
    """Without a timing, the data path calls the very functions that stand in the sources."""
    assert stages.active is None
    pool = Pool(1)
    assert wrapped(pool) == set()
    pool.close()


def test_each_stage_of_a_read_and_a_write_is_recorded() -> None:
    """Two batches through connection, ring and executor, without OpenCL's calls."""
    times = StageTimes(2)
    pool = Pool(1, times=times)
    assert wrapped(pool) >= {"receive", "next", "run", "flush", "publish", "take_complete", "complete", "turn"}
    for number, (command, payload) in enumerate(((1, b"x" * 4096), (0, b""))):
        request = struct.pack(">IHHQQI", 0x25609513, 0, command, number, 0, 4096) + payload
        pool.rigs[0].client.sendall(request)
        pool.work()
    assert pool.rigs[0].client.recv(1 << 16)[-4096:] == b"x" * 4096
    found = times.snapshot()
    assert (found.batches, found.requests) == (2, 2)
    calls = {Stage.SET_ARG, Stage.LAUNCH, Stage.COPY, Stage.FINISH}
    samples = {stage: found.stage(stage).samples for stage in Stage}
    # Collecting and sending are recorded with the replies that follow.
    late = {Stage.COLLECT: 1, Stage.SEND: 1}
    assert samples == {stage: 0 if stage in calls else late.get(stage, 2) for stage in Stage}
    pool.close()
