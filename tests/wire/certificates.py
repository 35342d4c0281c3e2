"""A certificate authority with one server and one client, made by GnuTLS's certtool."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

_AUTHORITY = "cn = vramblk test authority\nca\ncert_signing_key\nsigning_key\nencryption_key\nexpiration_days = 30\n"
_SERVER = (
    "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\n"
    "tls_www_server\nsigning_key\nencryption_key\nexpiration_days = 30\n"
)
_CLIENT = "cn = a client\ntls_www_client\nsigning_key\nencryption_key\nexpiration_days = 30\n"


class Certificates:
    """Directories as the server and as clients want them, and one of a stranger.

    Attributes:
        server: ca-cert.pem, server-cert.pem, server-key.pem.
        client: ca-cert.pem, client-cert.pem, client-key.pem, signed by the server's authority.
        stranger: the same names, signed by another authority, but trusting the server's.
        authority: ca-cert.pem and ca-key.pem of the server's.
    """

    def __init__(self, directory: Path) -> None:
        self.server = directory / "server"
        self.client = directory / "client"
        self.stranger = directory / "stranger"
        self.authority = authority = _make_authority(directory / "authority")
        other = _make_authority(directory / "other-authority")
        for place, kind, signer in (
            (self.server, "server", authority),
            (self.client, "client", authority),
            (self.stranger, "client", other),
        ):
            place.mkdir()
            (place / "ca-cert.pem").write_bytes((authority / "ca-cert.pem").read_bytes())
            _sign(place, kind, signer)

    def context(self, identity: Path | None = None) -> ssl.SSLContext:
        """A client's context that verifies the server, and shows ``identity`` if there is one."""
        context = ssl.create_default_context(cafile=str(self.client / "ca-cert.pem"))
        if identity is not None:
            context.load_cert_chain(identity / "client-cert.pem", identity / "client-key.pem")
        return context


def _certtool(*arguments: str) -> None:
    subprocess.run(["certtool", *arguments], check=True, capture_output=True)


def _make_authority(directory: Path) -> Path:
    directory.mkdir(parents=True)
    template, key = directory / "template", directory / "ca-key.pem"
    template.write_text(_AUTHORITY)
    _certtool("--generate-privkey", "--key-type=rsa", "--bits=2048", "--outfile", str(key))
    _certtool(
        "--generate-self-signed", "--load-privkey", str(key), "--template", str(template),
        "--outfile", str(directory / "ca-cert.pem"),
    )  # fmt: skip
    return directory


def _sign(directory: Path, kind: str, authority: Path) -> None:
    template, key = directory / "template", directory / f"{kind}-key.pem"
    template.write_text(_SERVER if kind == "server" else _CLIENT)
    _certtool("--generate-privkey", "--key-type=rsa", "--bits=2048", "--outfile", str(key))
    _certtool(
        "--generate-certificate", "--load-privkey", str(key), "--template", str(template),
        "--load-ca-certificate", str(authority / "ca-cert.pem"),
        "--load-ca-privkey", str(authority / "ca-key.pem"),
        "--outfile", str(directory / f"{kind}-cert.pem"),
    )  # fmt: skip
