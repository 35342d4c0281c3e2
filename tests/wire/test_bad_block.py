"""One client that keeps asking for a bad block does not make the device work twice for the others."""

from __future__ import annotations

import time
from pathlib import Path

from . import rawclient as nbd
from .steering import Background, Steered

BLOCK = 4096
BAD = 1000
DEPTH = 64
SECONDS = 3


def test_polling_a_bad_block_costs_others_little(tmp_path: Path) -> None:
    """While one client polls a bad block, another's requests reach the device about once each, and succeed."""
    with Steered(tmp_path / "server", "--workers", "2") as server, server.client() as poller, server.client() as other:
        data = bytes(range(1, DEPTH + 1)) * BLOCK
        other.write(0, data)
        server.fail("read", BAD * BLOCK, (BAD + 1) * BLOCK)
        until = time.monotonic() + SECONDS

        def poll() -> int:
            asked = 0
            while time.monotonic() < until:
                assert poller.call(nbd.READ, BAD * BLOCK, BLOCK).error == nbd.EIO
                asked += 1
            return asked

        before = len(server.executed())
        polling = Background(poll)
        asked = 0
        while time.monotonic() < until:
            encoded = [other.encode(nbd.READ, at * BLOCK, BLOCK) for at in range(DEPTH)]
            replies = other.exchange(b"".join(each for _, each in encoded), DEPTH)
            for at, (cookie, _) in enumerate(encoded):
                assert replies[cookie].data == data[at * BLOCK : (at + 1) * BLOCK]
            asked += DEPTH
        polled = polling.result()
        batches = server.executed()[before:]
        server.heal()
    executed = sum(count for _, count in batches)
    assert polled > 20
    assert len(batches) < (asked + polled) / 4, f"{asked} reads and {polled} bad ones took {len(batches)} batches"
    assert executed < (asked + 3 * polled) * 1.3, f"{asked} reads and {polled} bad ones were {executed} in the memory"
