"""How many connections there may be from where, and which one makes way for another.

A client that is nearer has places that those farther away cannot take:

    on a Unix socket             all of --max-connections
    TCP from this machine        an eighth less, if there is a Unix socket too
    TCP from elsewhere           another eighth less
    one address elsewhere        half of those

With fewer than eight places none is kept. Only a connection that has not finished its negotiation makes way.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple

from ..config.exposure import is_loopback
from ..config.settings import Settings

_KEPT_SHARE = 8
#: An IPv6 host has a network of its own to choose addresses from.
_IPV6_PREFIX = 64


class Origin(IntEnum):
    """Where a client is, the nearest first."""

    UNIX = 0
    LOCAL = 1
    REMOTE = 2


class Peer(NamedTuple):
    """A client's origin; for a remote one its address, or its network of IPv6."""

    origin: Origin
    address: str = ""


class Client(NamedTuple):
    """A connection that is open.

    Attributes:
        negotiates_since_ns: monotonic time of its start if its negotiation is not finished, otherwise None.
    """

    number: int
    peer: Peer
    negotiates_since_ns: int | None = None


class Full(NamedTuple):
    """A limit that is reached.

    Attributes:
        reason: for the log.
        counts: whether a client counts towards it.
    """

    reason: str
    counts: Callable[[Peer], bool]


def peer_of(connection: socket.socket) -> Peer:
    """Where a connection comes from.

    Raises:
        OSError: it is gone already.
    """
    if connection.family == socket.AF_UNIX:
        return Peer(Origin.UNIX)
    address = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return Peer(Origin.LOCAL)
    if address.version == 6:
        return Peer(Origin.REMOTE, str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False)))
    return Peer(Origin.REMOTE, str(address))


class Limits:
    """The limits of a server.

    Attributes:
        most: connections in all.
        most_tcp: over TCP.
        most_remote: over TCP from other machines.
        most_of_address: of those, from one address.
    """

    def __init__(self, settings: Settings) -> None:
        self.most = most = settings.max_connections
        kept = most // _KEPT_SHARE
        elsewhere = any(not is_loopback(address) for address in settings.tcp_listeners)
        self.most_tcp = most - kept if settings.unix_listeners else most
        self.most_remote = self.most_tcp - kept if elsewhere else self.most_tcp
        self.most_of_address = (self.most_remote + 1) // 2 if kept else most

    def reached(self, peer: Peer, clients: Iterable[Client], attached: int) -> Full | None:
        """The narrowest limit that one more client from ``peer`` would exceed; None if there is none.

        Args:
            attached: connections that are open or on their way to a worker.
        """
        counted = [client.peer for client in clients if client.peer.origin is not Origin.UNIX]
        for full, most in self._narrowest_first(peer):
            if sum(map(full.counts, counted)) >= most:
                return full
        if attached >= self.most:
            return Full(f"{self.most} connections are open (--max-connections)", lambda other: True)
        return None

    def _narrowest_first(self, peer: Peer) -> Iterable[tuple[Full, int]]:
        if peer.origin is Origin.REMOTE:
            most = self.most_of_address
            yield Full(
                f"{most} connections from {peer.address} are open, the most of one address "
                f"with --max-connections {self.most}",
                lambda other: other == peer,
            ), most  # fmt: skip
            most = self.most_remote
            yield Full(
                f"{most} connections from other machines are open, the most "
                f"with --max-connections {self.most}",
                lambda other: other.origin is Origin.REMOTE,
            ), most  # fmt: skip
        if peer.origin is not Origin.UNIX:
            most = self.most_tcp
            yield Full(
                f"{most} TCP connections are open, the most with --max-connections {self.most}",
                lambda other: other.origin is not Origin.UNIX,
            ), most  # fmt: skip


def makes_way(peer: Peer, full: Full, clients: Iterable[Client]) -> Client | None:
    """The client that makes way for one from ``peer``: of the unfinished negotiations that count towards the
    limit, none of them nearer than the newcomer, the oldest. None without any.

    Numbers have the order in which connections were accepted. Times do not: one that its worker has taken has
    the worker's time, which is later than the time at which the next one was sent.
    """
    candidates = (
        client
        for client in clients
        if client.negotiates_since_ns is not None
        and client.peer.origin >= peer.origin
        and full.counts(client.peer)
    )
    return min(candidates, key=lambda client: client.number, default=None)
