"""Requests that travel in pieces, and how far each has come."""

from __future__ import annotations

from ..nbd.transmission import Request


class LargeRead:
    """A read whose reply leaves in pieces.

    Attributes:
        single_header: one header stands before all the data (simple reply, or DF).
        header_sent: data may follow no more with an error, only with a closed connection.
        received_ns: when the request came, monotonic.
    """

    __slots__ = (
        "failed", "header_sent", "next_offset", "received_ns", "remaining", "request", "single_header",
    )  # fmt: skip

    def __init__(self, request: Request, single_header: bool, received_ns: int) -> None:
        self.request = request
        self.received_ns = received_ns
        self.next_offset = request.offset
        self.remaining = request.length
        self.single_header = single_header
        self.header_sent = False
        self.failed = False


class LargeWrite:
    """A write whose payload is still arriving; once ``error`` is set it is only drained."""

    __slots__ = ("error", "next_offset", "received_ns", "remaining", "request")

    def __init__(self, request: Request, error: int, received_ns: int) -> None:
        self.request = request
        self.received_ns = received_ns
        self.next_offset = request.offset
        self.remaining = request.payload
        self.error = error


class LargeZero:
    """A TRIM or WRITE_ZEROES that is done in pieces, one at a time; after an ``error`` no piece follows."""

    __slots__ = ("error", "next_offset", "op", "received_ns", "remaining", "request")

    def __init__(self, request: Request, op: int, received_ns: int) -> None:
        self.request = request
        self.op = op
        self.received_ns = received_ns
        self.next_offset = request.offset
        self.remaining = request.length
        self.error = 0
