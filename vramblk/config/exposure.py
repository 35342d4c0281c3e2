"""Which addresses serve everybody who reaches them. The log, the status and ``check`` warn of them."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from .settings import Settings
from .units import TcpAddress

_CONTAINER_FILES = (".dockerenv", "run/.containerenv")
_OF_PODS = "KUBERNETES_SERVICE_HOST"

NBD_REMEDY = (
    "listen on Unix sockets only (--listen-addr unix:/run/vramblk/nbd.sock, in Compose VRAMBLK_LISTEN_ADDR), "
    "or use --tls require with --tls-verify-peer or --tls-psk"
)
GROUP_REMEDY = "unset VRAMBLK_SOCKET_GID, so that the socket is root's alone, and start the server again"
METRICS_REMEDY = "bind --metrics-addr to 127.0.0.1, or set --metrics-token"


def exposed_listeners(settings: Settings) -> Iterator[tuple[TcpAddress, str]]:
    """TCP listeners that ask no client who it is, and who can so read and write the exports there."""
    if settings.tls == "require" and (settings.tls_verify_peer or settings.tls_psk is not None):
        return
    published = behind_published_ports()
    for address in settings.tcp_listeners:
        if published:
            yield address, "every account and every host that reaches the published port"
        elif is_loopback(address):
            yield address, "every account of this machine"
        else:
            yield address, "every host that reaches it"


def shared_swap_sockets(settings: Settings) -> Iterator[tuple[str, int]]:
    """Unix sockets of a swap server that a group other than root's may open, with that group.

    Its members can attach an export before the kernel does.
    """
    for address in settings.unix_listeners if settings.mode == "swap" else ():
        try:
            found = os.stat(address.path)
        except OSError:
            continue
        if found.st_gid != 0 and found.st_mode & stat.S_IRWXG:
            yield address.path, found.st_gid


def exposed_metrics(settings: Settings) -> TcpAddress | None:
    """The address where anybody on the network can read the metrics."""
    address = settings.metrics_addr
    if address is None or is_loopback(address) or settings.metrics_token or behind_published_ports():
        return None
    return address


def is_loopback(address: TcpAddress) -> bool:
    """Whether only this machine can reach the address."""
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def behind_published_ports(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a container with a network of its own, so that published ports decide who gets in.

    Not so in a pod, whose address is open to the cluster, nor with the host's network, whose interfaces
    are no ends of a pair.

    Args:
        root: where /sys and the marks of containers are looked for.
    """
    if _OF_PODS in environ or not any((root / name).exists() for name in _CONTAINER_FILES):
        return False
    interfaces = [path for path in (root / "sys/class/net").glob("*") if path.name != "lo"]
    return all(_read(path / "ifindex") != _read(path / "iflink") for path in interfaces)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
