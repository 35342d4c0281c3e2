"""The TLS context: a key or certificate that is there but unusable is refused, never left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from vramblk.config.settings import load_settings
from vramblk.errors import ConfigError
from vramblk.system.certificate import Validity
from vramblk.system.tls import TlsFiles, read_psk, unpack


def test_psk_file_as_psktool_writes_it(tmp_path: Path) -> None:
    (tmp_path / "psk").write_bytes(b"# comment\r\nalice:00ff\r\n\r\nbob:0102\n")
    assert read_psk(tmp_path / "psk") == {"alice": "00ff", "bob": "0102"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no key"),
        (b"alice\n", "line 1"),
        (b"alice:\n", "line 1"),
        (b"alice:xyz\n", "line 1"),
        (b"\xef\xbb\xbfalice:00ff\n", "byte-order mark"),
        (b"\xff\xfea\0:\x000\x000\0", "byte-order mark"),
        (b"\xe9:00ff\n", "UTF-8"),
    ],
)
def test_psk_file_that_no_client_could_use(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "psk"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_psk(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_verify_peer_without_tls_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tls_verify_peer.*TLS is off"):
        load_settings(["--tls-verify-peer"], {})
    assert load_settings(["--tls", "off", "--tls-verify-peer"], {}).tls == "off"
    assert load_settings(["--no-tls-verify-peer"], {}).tls == "off"


def test_an_empty_authority_stays_one_on_its_way_to_a_worker() -> None:
    """It must not come to mean that nobody is verified."""
    for authority in ("", None, "x"):
        files = TlsFiles("x", certificate="c", key="k", authority=authority, validity=Validity("f", 1.0, 2.0))
        assert unpack(files.pack()) == files
