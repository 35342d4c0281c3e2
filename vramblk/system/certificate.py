"""When certificates begin and end, read from their DER, since Python's ssl tells it of verified ones only.

Source: RFC 5280, section 4.1: Certificate, TBSCertificate, Validity.
"""

from __future__ import annotations

import datetime
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..config.units import format_days

#: How long before its end a certificate is warned about.
WARNING_S = 14 * 86400

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17


@dataclass(frozen=True)
class Validity:
    """From when until when a certificate of a file is valid, in seconds of Unix time."""

    file: str
    from_s: float
    until_s: float

    def warning(self, now_s: float | None = None) -> str:
        """What is wrong with it now or soon; empty if nothing is."""
        now_s = time.time() if now_s is None else now_s
        if now_s >= self.until_s:
            return f"{self.file} expired on {as_date(self.until_s)}; clients refuse it"
        if now_s < self.from_s:
            return f"{self.file} is valid from {as_date(self.from_s)} only; clients refuse it until then"
        left_s = self.until_s - now_s
        if left_s < WARNING_S:
            return f"{self.file} expires on {as_date(self.until_s)}, in {format_days(left_s)}"
        return ""


def as_date(seconds: float) -> str:
    """Such as 2027-01-31 12:00 UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def validities(file: str, text: str) -> Iterator[Validity]:
    """Of each certificate in a PEM file; one that is not understood is left out."""
    for pem in _PEM.findall(text):
        try:
            yield Validity(file, *_validity(ssl.PEM_cert_to_DER_cert(pem)))
        except (ValueError, IndexError, OverflowError):
            continue  # what it is worth is OpenSSL's to judge


def _validity(der: bytes) -> tuple[float, float]:
    certificate = _elements(der)[0][1]
    fields = _elements(_elements(certificate)[0][1])
    if fields[0][0] == _VERSION:
        del fields[0]
    tag, validity = fields[3]  # behind serial number, algorithm and issuer
    if tag != _SEQUENCE:
        raise ValueError("no Validity where it should be")
    begin, end = (_seconds(*element) for element in _elements(validity))
    return begin, end


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element, one behind the other."""
    found = []
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        found.append((tag, data[at : at + length]))
        at += length
    return found


def _seconds(tag: int, content: bytes) -> float:
    """UTCTime with two digits of the year (1950 to 2049), otherwise GeneralizedTime."""
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    moment = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ")
    return moment.replace(tzinfo=datetime.UTC).timestamp()
