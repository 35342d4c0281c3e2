"""Who gets a place when places are short, and which unfinished negotiation makes way."""

from __future__ import annotations

import socket

import pytest

from vramblk.config.settings import load_settings
from vramblk.supervisor.limits import Client, Full, Limits, Origin, Peer, makes_way, peer_of

UNIX, LOCAL = Peer(Origin.UNIX), Peer(Origin.LOCAL)
NEAR, FAR = Peer(Origin.REMOTE, "192.0.2.1"), Peer(Origin.REMOTE, "192.0.2.2")
EVERYWHERE = ("unix:/run/x", "0.0.0.0:1")


def limits(most: int, *addresses: str) -> Limits:
    flags = [text for address in addresses for text in ("--listen-addr", address)]
    return Limits(load_settings(["--max-connections", str(most), *flags], {}))


@pytest.mark.parametrize(
    ("most", "addresses", "expected"),
    [
        (64, EVERYWHERE, (64, 56, 48, 24)),
        (64, ("127.0.0.1:1",), (64, 64, 64, 32)),
        (64, ("unix:/run/x", "127.0.0.1:1"), (64, 56, 56, 28)),
        (64, ("0.0.0.0:1",), (64, 64, 56, 28)),
        (8, EVERYWHERE, (8, 7, 6, 3)),
        (7, EVERYWHERE, (7, 7, 7, 7)),
        (1, EVERYWHERE, (1, 1, 1, 1)),
    ],
)
def test_places_are_kept_for_who_is_nearer(most: int, addresses: tuple[str, ...], expected: tuple[int, ...]) -> None:
    """Only where there is a listener for the nearer, and only of eight places or more."""
    found = limits(most, *addresses)
    assert (found.most, found.most_tcp, found.most_remote, found.most_of_address) == expected


@pytest.mark.parametrize(
    ("there", "newcomer", "said"),
    [
        ([NEAR] * 24, NEAR, "from 192.0.2.1"),
        ([NEAR] * 24, FAR, ""),
        ([NEAR] * 24 + [FAR] * 24, Peer(Origin.REMOTE, "192.0.2.3"), "from other machines"),
        ([NEAR] * 24 + [FAR] * 24, LOCAL, ""),
        ([NEAR] * 24 + [FAR] * 24 + [LOCAL] * 8, LOCAL, "56 TCP connections"),
        ([LOCAL] * 56, UNIX, ""),
        ([UNIX] * 64, UNIX, "64 connections are open (--max-connections)"),
        ([UNIX] * 64, NEAR, "64 connections are open (--max-connections)"),
    ],
)
def test_the_narrowest_limit_is_named(there: list[Peer], newcomer: Peer, said: str) -> None:
    clients = [Client(number, peer) for number, peer in enumerate(there)]
    full = limits(64, *EVERYWHERE).reached(newcomer, clients, len(clients))
    assert (full is not None) == bool(said)
    assert full is None or said in full.reason


def test_the_oldest_of_those_that_count_makes_way() -> None:
    """Never one that has negotiated, and none that is nearer than the newcomer."""
    everybody = Full("", lambda peer: True)
    clients = [
        Client(1, UNIX, 10), Client(2, NEAR), Client(5, FAR, 30), Client(6, NEAR, 40), Client(3, LOCAL, 50),
    ]  # fmt: skip

    def way(peer: Peer, full: Full = everybody) -> int:
        found = makes_way(peer, full, clients)
        return found.number if found else 0

    assert (way(UNIX), way(LOCAL), way(NEAR)) == (1, 3, 5)
    assert way(NEAR, Full("", lambda peer: peer == NEAR)) == 6
    assert makes_way(UNIX, everybody, [Client(1, UNIX), Client(2, FAR)]) is None


class Connection:
    """What ``peer_of`` asks of a socket."""

    def __init__(self, host: str) -> None:
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.getpeername = lambda: (host, 1)


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("127.0.0.1", LOCAL),
        ("127.9.9.9", LOCAL),
        ("::1", LOCAL),
        ("::ffff:127.0.0.1", LOCAL),
        ("192.0.2.1", NEAR),
        ("::ffff:192.0.2.1", NEAR),
        ("2001:db8::1", Peer(Origin.REMOTE, "2001:db8::/64")),
        ("2001:db8::2", Peer(Origin.REMOTE, "2001:db8::/64")),
        ("fe80::1%eth0", Peer(Origin.REMOTE, "fe80::/64")),
    ],
)
def test_where_a_connection_comes_from(host: str, peer: Peer) -> None:
    """An IPv6 host has a whole network of addresses, so that counts as one."""
    assert peer_of(Connection(host)) == peer  # type: ignore[arg-type]
