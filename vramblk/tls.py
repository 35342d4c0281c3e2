"""The TLS context of the server, from the files that the settings name.

Source: "TLS support" of the NBD specification; x509 file names as other NBD programs use them.
"""

from __future__ import annotations

import socket
import ssl
import sys
from pathlib import Path

from .errors import ConfigError, PreconditionError
from .settings import Settings

_PSK_SINCE = (3, 13)


def decrypted(sock: socket.socket) -> bool:
    """Whether a socket holds bytes of which epoll does not tell, since they are decrypted already."""
    return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0


def make_context(settings: Settings) -> ssl.SSLContext | None:
    """The context for STARTTLS, or None with TLS off.

    Raises:
        ConfigError: certificates or keys are missing, unreadable or do not fit together.
        PreconditionError: PSK on a Python that cannot do it.
    """
    if settings.tls == "off":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_psk is not None:
        _use_psk(context, Path(settings.tls_psk))
    elif settings.tls_certificates is not None:
        _use_certificates(context, Path(settings.tls_certificates), verify_peer=settings.tls_verify_peer)
    else:
        raise ConfigError(
            f"tls {settings.tls} needs --tls-certificates DIR (ca-cert.pem, server-cert.pem, server-key.pem) "
            "or --tls-psk FILE"
        )
    return context


def _use_certificates(context: ssl.SSLContext, folder: Path, *, verify_peer: bool) -> None:
    certificate, key, authority = (
        folder / name for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem")
    )
    for path in (certificate, key, *((authority,) if verify_peer else ())):
        _require_readable(path, "tls_certificates")
    try:
        context.load_cert_chain(certificate, key)
        if verify_peer:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"tls_certificates {folder}: {error}; check that key and certificate belong together"
        ) from error


def _use_psk(context: ssl.SSLContext, path: Path) -> None:
    if sys.version_info < _PSK_SINCE:
        raise PreconditionError(
            f"--tls-psk needs Python 3.13 or later, this is {sys.version.split()[0]}: "
            "use a newer Python (the container image has it) or --tls-certificates"
        )
    _require_readable(path, "tls_psk")
    keys: dict[str, bytes] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, key = line.strip().partition(":")
        try:
            keys[name] = bytes.fromhex(key)
        except ValueError:
            keys = {}
        if not keys.get(name):
            raise ConfigError(f"tls_psk {path} line {number}: expected NAME:HEXKEY, as psktool writes it")
    if not keys:
        raise ConfigError(
            f"tls_psk {path} holds no key: write one with `psktool --username=NAME --pskfile={path}`"
        )
    context.set_psk_server_callback(lambda identity: keys.get(identity or "", b""))  # type: ignore[attr-defined,unused-ignore]
    context.set_ciphers("PSK:@SECLEVEL=1")


def _require_readable(path: Path, setting: str) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error
