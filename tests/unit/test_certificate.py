"""When a certificate ends is known, and said fourteen days before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.wire.harness import find_program
from vramblk.system.certificate import WARNING_S, Validity, validities

DAY = 86400


def made(directory: Path, begin: str, end: str) -> str:
    """A self-signed certificate; `begin` and `end` as certtool takes them."""
    certtool = find_program("certtool") or pytest.skip("requires certtool")
    template, key, cert = directory / "template", directory / "key", directory / "cert"
    template.write_text(f'cn = x\nactivation_date = "{begin} UTC"\nexpiration_date = "{end} UTC"\n')
    for arguments in (
        ["--generate-privkey", "--key-type=ecdsa", "--outfile", str(key)],
        [
            "--generate-self-signed",
            "--load-privkey",
            str(key),
            "--template",
            str(template),
            "--outfile",
            str(cert),
        ],
    ):
        subprocess.run([certtool, *arguments], check=True, capture_output=True)
    return cert.read_text()


@pytest.mark.parametrize(
    ("begin", "end", "from_s", "until_s"),
    [
        ("2026-01-01 00:00:00", "2027-01-31 12:30:45", 1767225600, 1801398645),
        ("2040-06-01 00:00:00", "2060-06-01 00:00:00", 2222121600, 2853273600),
    ],
)
def test_validity_of_each_certificate(
    begin: str, end: str, from_s: int, until_s: int, tmp_path: Path
) -> None:
    text = made(tmp_path, begin, end)
    assert list(validities("f", text)) == [Validity("f", from_s, until_s)]
    assert len(list(validities("f", "comment\n" + text + text))) == 2


@pytest.mark.parametrize(
    "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----"]
)
def test_what_is_none_is_left_out(text: str) -> None:
    assert list(validities("f", text)) == []


def test_warning() -> None:
    validity = Validity("/tls/server-cert.pem", 1000 * DAY, 1100 * DAY)
    assert validity.warning(1050 * DAY) == ""
    assert validity.warning(1100 * DAY - WARNING_S) == ""
    assert "expires on 1973-01-05 00:00 UTC, in 13.0 days" in validity.warning(1087 * DAY)
    assert "expired on 1973-01-05" in validity.warning(1100 * DAY)
    assert "is valid from 1972-09-27" in validity.warning(999 * DAY)
    assert "/tls/server-cert.pem" in validity.warning(999 * DAY)
