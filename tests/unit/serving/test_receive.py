"""The receive lane: bytes arrive in order whatever wraps, and live payloads are never overwritten."""

from __future__ import annotations

import random
import socket

from vramblk.serving.lanes import Lane
from vramblk.serving.receive import ReceiveLane


def test_bytes_arrive_in_order_and_live_payloads_stay() -> None:
    """A stream of ten lanes' worth is parsed whole while earlier payloads are held for a while."""
    generator = random.Random(5)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    size = 400 << 10
    slab = memoryview(bytearray(size))
    lane = ReceiveLane(ours, Lane(0, 0, size, 0, 0), slab, b"")
    stream = random.Random(7).randbytes(10 * size)
    sent = parsed = 0
    held: list[tuple[int, bytes]] = []
    while parsed < len(stream):
        if sent < len(stream):
            try:
                sent += theirs.send(stream[sent : sent + generator.randint(1, 50000)])
            except BlockingIOError:
                pass
        count, _ = lane.receive(may_move=True)
        assert count != 0
        amount = min(lane.have - lane.position, generator.randint(0, 60000))
        if amount:
            piece = bytes(slab[lane.position : lane.position + amount])
            assert piece == stream[parsed : parsed + amount]
            held.append((lane.position, piece))
            lane.live.append(lane.position)
            lane.position += amount
            parsed += amount
        while held and (len(held) > 4 or lane.room(may_move=True) == 0 or generator.random() < 0.3):
            position, piece = held.pop(0)
            assert slab[position : position + len(piece)] == piece
            lane.live.popleft()
    ours.close()
    theirs.close()


def test_full_lane_with_an_unfinished_request_has_room() -> None:
    """A lane filled to its end by a request that is not whole asks for input again once it may move it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    size = 320 << 10
    lane = ReceiveLane(ours, Lane(0, 0, size, 0, 0), memoryview(bytearray(size)), b"")
    lane.position, lane.have = size - 50_000, size
    lane.live.append(0)
    assert lane.room(may_move=True) == 0
    lane.live.popleft()
    assert lane.room(may_move=False) == 0
    assert lane.room(may_move=True) == size - 50_000
    theirs.send(b"rest")
    assert lane.receive(may_move=True)[0] == 4
    assert (lane.position, lane.have) == (0, 50_004)
    ours.close()
    theirs.close()
