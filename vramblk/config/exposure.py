"""Which addresses serve anybody who reaches them; asked by the log, the status and ``check``."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from .settings import Settings
from .units import TcpAddress

_CONTAINER_FILES = (".dockerenv", "run/.containerenv")
_OF_PODS = "KUBERNETES_SERVICE_HOST"

NBD_REMEDY = "listen on 127.0.0.1 or a Unix socket, or use --tls require with --tls-verify-peer"
METRICS_REMEDY = "bind --metrics-addr to 127.0.0.1, or set --metrics-token"


def exposed_listeners(settings: Settings) -> Iterator[TcpAddress]:
    """NBD listeners where anybody on the network can read and overwrite the exports."""
    proven = settings.tls == "require" and (settings.tls_verify_peer or settings.tls_psk is not None)
    if not proven and not behind_published_ports():
        yield from (address for address in settings.tcp_listeners if not is_loopback(address))


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
