"""An export larger than 32 bits can say, and requests of the protocol's own limit.

Uses 4.5 GiB of RAM where there are 12 GiB to spare, otherwise 512 MiB and shorter requests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from . import rawclient as nbd
from .harness import Server

GIB = 1 << 30
MOST = (1 << 32) - 1


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


SIZE_MIB = 4608 if available_bytes() > 12 * GIB else 512
SIZE = SIZE_MIB << 20
LONGEST = min(MOST, SIZE - 8192)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory):
    with Server(tmp_path_factory.mktemp("large"), "--workers", "1", size=f"{SIZE_MIB}M") as server:
        yield server


@pytest.mark.parametrize("kind", ("simple", "extended"))
@pytest.mark.parametrize("command", (nbd.WRITE_ZEROES, nbd.TRIM))
def test_zeroing_up_to_the_limit(large: Server, command: int, kind: str) -> None:
    """WRITE_ZEROES and TRIM of 4 GiB - 1 in one request zero that range and nothing else."""
    places = (4096, SIZE // 2 + 5, LONGEST - 8192)
    with large.client(**{} if kind == "simple" else {kind: True}) as client:
        client.write(0, b"\xee" * 4096)
        client.write(SIZE - 4096, b"\xdd" * 4096)
        for place in places:
            client.write(place, b"\xaa" * 4096)
        assert client.call(command, 4096, LONGEST - 4096 if kind == "simple" else SIZE - 8192, nbd.FUA).error == 0
        for place in places:
            assert client.read(place, 4096) == bytes(4096)
        assert client.read(0, 4096) == b"\xee" * 4096
        assert client.read(SIZE - 4096, 4096) == b"\xdd" * 4096


@pytest.mark.parametrize("kind", ("structured", "extended"))
def test_cache_and_block_status_up_to_the_limit(large: Server, kind: str) -> None:
    """CACHE of the longest range is answered, and BLOCK_STATUS in several answers that cover all of it."""
    with large.client(contexts=("base:allocation",), **{kind: True}) as client:
        length = SIZE if kind == "extended" else min(MOST, SIZE)
        for start in range(0, SIZE, GIB):
            assert client.call(nbd.TRIM, start, min(GIB, SIZE - start)).error == 0
        assert client.call(nbd.CACHE, 0, length).error == 0
        client.write(SIZE // 2, b"x" * 4096)
        extents: list[tuple[int, int]] = []
        at = 0
        while at < length:
            for size, state in client.call(nbd.BLOCK_STATUS, at, length - at).extents:
                at += size
                if extents and extents[-1][1] == state:
                    size += extents.pop()[0]
                extents.append((size, state))
        assert extents == [(SIZE // 2, 3), (4096, 0), (length - SIZE // 2 - 4096, 3)]


def test_offsets_beyond_32_bits(large: Server) -> None:
    """Small and odd requests near the end of the export hit their own bytes, one at a time and many at once."""
    with large.client(structured=True) as client:
        base = SIZE - (64 << 20)
        stream, expected = b"", {}
        for index in range(200):
            offset, data = base + index * 70_001, bytes([index]) * (4096 if index % 2 else 5000)
            stream += client.encode(nbd.WRITE, offset, payload=data)[1]
            expected[offset] = data
        assert not any(reply.error for reply in client.exchange(stream, 200).values())
        for offset, data in expected.items():
            assert client.read(offset, len(data)) == data
        assert client.call(nbd.READ, SIZE - 1, 2).error == nbd.EINVAL
