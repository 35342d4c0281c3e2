"""The server's TLS: its files, read whole and once, and the contexts made of them.

The supervisor reads the files; workers get their content, by the fork or later over their handoff
socket. So a worker needs no right to read them, and one that starts later does not depend on what the
files are by then.

Source: "TLS support" of the NBD specification; x509 file names as other NBD programs use them.
"""

from __future__ import annotations

import codecs
import json
import os
import secrets
import socket
import ssl
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..config.settings import Settings
from ..errors import ConfigError, PreconditionError
from . import certificate
from .certificate import Validity

_PSK_SINCE = (3, 13)
#: Of a key, bytes: below, it can be guessed; above, no library takes it.
_PSK_BYTES = range(16, 257)


@dataclass(frozen=True)
class TlsFiles:
    """The content of the files that the settings name, as text.

    Attributes:
        where: how an error names them.
        certificate: server-cert.pem, empty with pre-shared keys.
        authority: ca-cert.pem, if clients have to show a certificate; empty is not None.
        psk: keys in hexadecimal by name.
        validity: of the certificate among them that ends first; None with pre-shared keys.
    """

    where: str
    certificate: str = field(repr=False, default="")
    key: str = field(repr=False, default="")
    authority: str | None = field(repr=False, default=None)
    psk: dict[str, str] = field(repr=False, default_factory=dict)
    validity: Validity | None = None

    def context(self) -> ssl.SSLContext:
        """A context for STARTTLS.

        Raises:
            ConfigError: they do not fit together, or are not what they should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.psk:
            # TLS 1.3 has no suite without encryption, and OpenSSL no PSK mode of it without forward secrecy.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            keys = {name: bytes.fromhex(key) for name, key in self.psk.items()}
            # An unknown name fails as a wrong key does, at the same step: nobody learns which there are.
            nobodys = secrets.token_bytes(len(next(iter(keys.values()))))
            context.set_psk_server_callback(lambda identity: keys.get(identity or "", nobodys))  # type: ignore[attr-defined,unused-ignore]
            return context
        try:
            with _as_file(self.certificate) as certificate, _as_file(self.key) as key:
                context.load_cert_chain(certificate, key, password=_no_password)
            if self.authority is not None:
                with _as_file(self.authority) as authority:
                    context.load_verify_locations(authority)
                context.verify_mode = ssl.CERT_REQUIRED
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"{self.where}: {error}; check that key and certificate belong together"
            ) from error
        return context

    def pack(self) -> bytes:
        """For ``unpack`` in another process."""
        return json.dumps(asdict(self)).encode()


def unpack(packed: bytes) -> TlsFiles:
    """What ``TlsFiles.pack`` has packed."""
    values = json.loads(packed)
    validity = values.pop("validity")
    return TlsFiles(**values, validity=Validity(**validity) if validity else None)


def shows_authority(sock: ssl.SSLSocket) -> bool:
    """Whether the client's certificate is one of the authority that clients are verified by.

    OpenSSL takes it for a client's, since it is trusted; but who holds that key signs, and is no client.
    """
    shown = sock.getpeercert(binary_form=True)
    return shown is not None and shown in sock.context.get_ca_certs(binary_form=True)


def decrypted(sock: socket.socket) -> bool:
    """Whether a socket holds bytes of which epoll does not tell, since they are decrypted already."""
    return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0


def read_files(settings: Settings) -> TlsFiles | None:
    """The TLS files, proven by making a context of them; None with TLS off.

    Raises:
        ConfigError: certificates or keys are missing, unreadable or do not fit together.
        PreconditionError: PSK on a Python that cannot do it.
    """
    if settings.tls == "off":
        return None
    if settings.tls_psk is not None:
        if sys.version_info < _PSK_SINCE:
            raise PreconditionError(
                f"--tls-psk needs Python 3.13 or later, this is {sys.version.split()[0]}: "
                "use a newer Python (the container image has it) or --tls-certificates"
            )
        files = TlsFiles(f"tls_psk {settings.tls_psk}", psk=read_psk(Path(settings.tls_psk)))
    elif settings.tls_certificates is not None:
        files = _read_certificates(Path(settings.tls_certificates), verify_peer=settings.tls_verify_peer)
    else:
        raise ConfigError(
            f"tls {settings.tls} needs --tls-certificates DIR (ca-cert.pem, server-cert.pem, server-key.pem) "
            "or --tls-psk FILE"
        )
    files.context()
    return files


def _read_certificates(folder: Path, *, verify_peer: bool) -> TlsFiles:
    paths = [folder / name for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem")]
    certificate_text, key = (_read(path, "tls_certificates") for path in paths[:2])
    authority = _read(paths[2], "tls_certificates") if verify_peer else None
    validities = [*certificate.validities(str(paths[0]), certificate_text)]
    validities += certificate.validities(str(paths[2]), authority or "")
    return TlsFiles(
        f"tls_certificates {folder}",
        certificate_text,
        key,
        authority,
        validity=min(validities, key=lambda validity: validity.until_s, default=None),
    )


def read_psk(path: Path) -> dict[str, str]:
    """The keys, in hexadecimal, of a file with NAME:HEXKEY lines, by name.

    Raises:
        ConfigError: unreadable, or readable for others; no key in it, one that is too short, or a line that
            no client could use.
    """
    text = _read(path, "tls_psk")
    _require_private(path)
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, key = line.strip().partition(":")
        try:
            keys[name] = bytes.fromhex(key).hex()
        except ValueError:
            keys = {}
        if not keys.get(name):
            raise ConfigError(f"tls_psk {path} line {number}: expected NAME:HEXKEY, as psktool writes it")
        if (length := len(bytes.fromhex(key))) not in _PSK_BYTES:
            raise ConfigError(
                f"tls_psk {path} line {number}: the key has {length} bytes; expected {_PSK_BYTES[0]} to "
                f"{_PSK_BYTES[-1]}, such as the 32 of `psktool --username=NAME --pskfile={path}`"
            )
    if not keys:
        raise ConfigError(
            f"tls_psk {path} holds no key: write one with `psktool --username=NAME --pskfile={path}`"
        )
    return keys


def _require_private(path: Path) -> None:
    """Who can read the keys is a client, and who can write them chooses the clients.

    Raises:
        ConfigError: somebody beside the file's owner and root's group can.
    """
    found = path.stat()
    theirs = found.st_mode & (stat.S_IRWXO | stat.S_IRWXG)
    if theirs & stat.S_IRWXO or (theirs & stat.S_IRWXG and found.st_gid != 0):
        raise ConfigError(
            f"tls_psk {path} has mode {stat.S_IMODE(found.st_mode):04o}, so others can use its keys; "
            f"type: chmod 600 {path}"
        )


def _read(path: Path, setting: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"{setting} {path} begins with a byte-order mark; save it as UTF-8 without BOM")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{setting} {path} is not UTF-8 at byte {error.start}") from None


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """A path, for OpenSSL takes certificates from files only."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def _no_password() -> str:
    """Without it OpenSSL would ask for one on the terminal and wait."""
    raise ValueError("the key is encrypted, and nobody is there to type its password; decrypt it")
