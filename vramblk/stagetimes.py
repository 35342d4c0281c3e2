"""Puts timing around what the engine and the workers do with a batch; see ``shared.stages``.

Each process wraps its own calls, once, when it starts to serve. Only the server of ``vramblk bench
--profile`` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .nbd.transmission import Parser
from .serving.pending import Submitter
from .serving.receive import ReceiveLane
from .serving.replyqueue import ReplyQueue
from .serving.submission import Submission
from .shared.stages import Stage, StageTimes
from .shared.window import ENTRIES

_CALLS = (Stage.SET_ARG, Stage.LAUNCH, Stage.COPY, Stage.FINISH)
_ENGINE_STAGES = tuple(map(int, (Stage.DECODE, Stage.PLAN, *_CALLS, Stage.COMPLETE)))
_SUBMITTING = tuple(map(int, (Stage.RECEIVE, Stage.PARSE, Stage.SUBMIT)))
_REPLYING = tuple(map(int, (Stage.COLLECT, Stage.SEND)))
_RECEIVE, _PARSE, _SUBMIT, _TO_TAKEN, _DECODE, _PLAN, _COMPLETE, _TO_COLLECTED, _COLLECT, _SEND = map(
    int,
    (
        Stage.RECEIVE, Stage.PARSE, Stage.SUBMIT, Stage.TO_TAKEN, Stage.DECODE, Stage.PLAN, Stage.COMPLETE,
        Stage.TO_COLLECTED, Stage.COLLECT, Stage.SEND,
    ),
)  # fmt: skip
_FIRST_CALL, _BEHIND_CALLS = int(Stage.SET_ARG), int(Stage.FINISH) + 1


def watch_engine(engine: Any, times: StageTimes) -> None:
    """Time an ``executor.Executor``; the OpenCL calls are timed by ``memory.hotcalls``."""
    recorder, clock = times.engine, time.monotonic_ns
    gathered = recorder.gathered
    submitted, done = times.submitted, times.done
    decode, execute, turn = engine._decode, engine._execute, engine.turn
    requests, executed_ns = 0, 0

    def timed_decode(index: int, head: int, tail: int, batches: Any) -> int:
        nonlocal requests, executed_ns
        taken_ns = clock()
        stamps = submitted[index]
        for number in range(head, tail):
            stamp = stamps[number % ENTRIES]
            if stamp:
                recorder.record(_TO_TAKEN, taken_ns - stamp)
                stamps[number % ENTRIES] = 0
        begin = clock()
        count: int = decode(index, head, tail, batches)
        executed_ns = clock()  # if nothing of it is sane, nothing is executed
        gathered[_DECODE] += executed_ns - begin
        requests += count
        return count

    def timed_execute(export: int, batch: Any, taken: Any) -> None:
        nonlocal executed_ns
        calls = sum(gathered[_FIRST_CALL:_BEHIND_CALLS])
        begin = clock()
        execute(export, batch, taken)
        executed_ns = clock()
        calls = sum(gathered[_FIRST_CALL:_BEHIND_CALLS]) - calls
        gathered[_PLAN] += executed_ns - begin - calls
        for index, _, tail in taken:
            done[index][(tail - 1) % ENTRIES] = executed_ns

    def timed_turn() -> bool:
        nonlocal requests
        requests = 0
        if not turn():
            return False
        gathered[_COMPLETE] += clock() - executed_ns
        recorder.close(_ENGINE_STAGES)
        recorder.count_batch(requests)
        return True

    # What was gathered before, while the memory was proven, belongs to no batch.
    gathered[:] = [0] * len(gathered)
    engine._decode, engine._execute, engine.turn = timed_decode, timed_execute, timed_turn


def watch_worker(submitter: Submitter, index: int, times: StageTimes) -> None:
    """Time all connections of this worker process, whose window has this index."""
    recorder, clock = times.workers[index], time.monotonic_ns
    gathered = recorder.gathered
    submitted, done = times.submitted[index], times.done[index]
    collected = submitter.ring.done()
    published = submitter.ring.tail

    def wrap_receive(receive: Any) -> Any:
        def timed(lane: ReceiveLane, *, may_move: bool) -> tuple[int, bool]:
            begin = clock()
            found: tuple[int, bool] = receive(lane, may_move=may_move)
            if found[0] > 0:  # looking in vain is waiting, not receiving
                gathered[_RECEIVE] += clock() - begin
            return found

        return timed

    def wrap_parse(parse: Any) -> Any:
        def timed(parser: Parser, position: int, have: int) -> Any:
            begin = clock()
            item = parse(parser, position, have)
            if item is not None:
                gathered[_PARSE] += clock() - begin
            return item

        return timed

    def wrap_publish(publish: Any) -> Any:
        def timed(submitter: Submitter) -> None:
            nonlocal published
            tail = submitter.ring.tail
            if tail != published:
                published = tail
                submitted[(tail - 1) % ENTRIES] = clock()
                publish(submitter)
                recorder.close(_SUBMITTING)

        return timed

    def wrap_collect(collect: Any) -> Any:
        def timed(submitter: Submitter) -> Any:
            nonlocal collected
            now_done = submitter.ring.done()
            if now_done == collected:
                return collect(submitter)
            noticed_ns = clock()
            recorder.close(_REPLYING)  # of the replies before: they were sent after their ``collect``
            for number in range(collected, now_done):
                stamp = done[number % ENTRIES]
                if stamp:
                    recorder.record(_TO_COLLECTED, noticed_ns - stamp)
                    done[number % ENTRIES] = 0
            collected = now_done
            begin = clock()
            touched = collect(submitter)
            gathered[_COLLECT] += clock() - begin
            return touched

        return timed

    def wrap_flush(flush: Any) -> Any:
        def timed(replies: ReplyQueue) -> None:
            if not replies.waiting:
                flush(replies)
                return
            begin = clock()
            flush(replies)
            gathered[_SEND] += clock() - begin

        return timed

    _replace(ReceiveLane, "receive", wrap_receive)
    _replace(Parser, "next", wrap_parse)
    for name in ("reply", "run", "read", "read_piece", "write", "zero"):
        _replace(Submission, name, lambda call: recorder.timed(call, _SUBMIT))
    _replace(Submitter, "publish", wrap_publish)
    _replace(Submitter, "collect", wrap_collect)
    _replace(ReplyQueue, "flush", wrap_flush)


def _replace(owner: type, name: str, wrap: Callable[[Any], Any]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))
