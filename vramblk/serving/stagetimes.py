"""Times the stages of a batch in a worker of ``bench --profile``; see ``shared.stages``."""

from __future__ import annotations

import time
from typing import Any

from ..shared.descriptors import ENTRIES
from ..shared.stages import Stage, StageTimes

_SUBMITTING = tuple(map(int, (Stage.RECEIVE, Stage.PARSE, Stage.SUBMIT)))
_REPLYING = tuple(map(int, (Stage.COLLECT, Stage.SEND)))
_RECEIVE, _PARSE, _SUBMIT, _TO_COLLECTED, _COLLECT, _SEND = map(
    int, (Stage.RECEIVE, Stage.PARSE, Stage.SUBMIT, Stage.TO_COLLECTED, Stage.COLLECT, Stage.SEND)
)


class WorkerTiming:
    """What a worker and its connections wrap calls of their parts in.

    Args:
        index: of the worker's window.
    """

    def __init__(self, times: StageTimes, index: int) -> None:
        self._recorder = times.workers[index]
        self._gathered = times.workers[index].gathered
        self._submitted, self._done = times.submitted[index], times.done[index]

    def watch_submissions(self, submissions: Any) -> None:
        """Time what is published and collected from now on: not before the window is proven."""
        recorder, clock = self._recorder, time.monotonic_ns
        submitted, done, ring = self._submitted, self._done, submissions.ring
        publish, take_complete = submissions.publish, submissions.take_complete
        published, collected = ring.tail, ring.done()

        def timed_publish() -> None:
            nonlocal published
            tail = ring.tail
            if tail != published:
                published = tail
                submitted[(tail - 1) % ENTRIES] = clock()
                publish()
                recorder.close(_SUBMITTING)

        def timed_take_complete() -> Any:
            nonlocal collected
            now_done = ring.done()
            if now_done != collected:
                noticed_ns = clock()
                recorder.close(_REPLYING)  # of the replies before: they were sent after they were complete
                for number in range(collected, now_done):
                    stamp = done[number % ENTRIES]
                    if stamp:
                        recorder.record(_TO_COLLECTED, noticed_ns - stamp)
                        done[number % ENTRIES] = 0
                collected = now_done
            return take_complete()

        _replace(submissions, publish=timed_publish, take_complete=timed_take_complete)

    def watch_connection(
        self, connection: Any, received: Any, parser: Any, writer: Any, replies: Any
    ) -> None:
        """Time a connection and its parts: receive lane, parser, ring writer and reply queue."""
        gathered, clock = self._gathered, time.monotonic_ns
        receive, parse, flush = received.receive, parser.next, replies.flush

        def timed_receive(*, may_move: bool) -> tuple[int, bool]:
            begin = clock()
            found: tuple[int, bool] = receive(may_move=may_move)
            if found[0] > 0:  # looking in vain is waiting, not receiving
                gathered[_RECEIVE] += clock() - begin
            return found

        def timed_parse(position: int, have: int) -> Any:
            begin = clock()
            item = parse(position, have)
            if item is not None:
                gathered[_PARSE] += clock() - begin
            return item

        def timed_flush() -> bool:
            if not replies.waiting:
                return bool(flush())
            begin = clock()
            sound = bool(flush())
            gathered[_SEND] += clock() - begin
            return sound

        timed = self._recorder.timed
        _replace(connection, complete=timed(connection.complete, _COLLECT))
        _replace(received, receive=timed_receive)
        _replace(parser, next=timed_parse)
        _replace(replies, flush=timed_flush)
        names = ("reply", "run", "read", "read_piece", "write", "zero")
        _replace(writer, **{name: timed(getattr(writer, name), _SUBMIT) for name in names})


def _replace(part: object, **calls: Any) -> None:
    """Of this one object only; all others of its class stay as they are."""
    vars(part).update(calls)
