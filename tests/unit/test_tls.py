"""The TLS context: a key or certificate that is there but unusable is refused, never left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vramblk.config.settings import load_settings
from vramblk.errors import ConfigError
from vramblk.system.certificate import Validity
from vramblk.system.tls import TlsFiles, read_psk, unpack

KEY = bytes(range(16)).hex()


def test_psk_file_as_psktool_writes_it(tmp_path: Path) -> None:
    (tmp_path / "psk").write_text(f"# comment\r\nalice:{KEY}\r\n\r\nbob:{KEY}00\n")
    (tmp_path / "psk").chmod(0o600)
    assert read_psk(tmp_path / "psk") == {"alice": KEY, "bob": KEY + "00"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no key"),
        (b"alice\n", "line 1"),
        (b"alice:\n", "line 1"),
        (b"alice:xyz\n", "line 1"),
        (b"alice:00ff\n", "the key has 2 bytes; expected 16 to 256"),
        (b"alice:" + b"00" * 15, "the key has 15 bytes"),
        (b"alice:" + b"00" * 257, "the key has 257 bytes"),
        (b"\xef\xbb\xbfalice:00ff\n", "byte-order mark"),
        (b"\xff\xfea\0:\x000\x000\0", "byte-order mark"),
        (b"\xe9:00ff\n", "UTF-8"),
    ],
)
def test_psk_file_that_no_client_could_use(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "psk"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        read_psk(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o640, 0o620, 0o666])
def test_psk_file_that_others_can_use(mode: int, tmp_path: Path) -> None:
    """Root's group is no others: it may read what root may."""
    path = tmp_path / "psk"
    path.write_text(f"alice:{KEY}\n")
    if os.geteuid() == 0:
        os.chown(path, -1, 1234)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        read_psk(path)
    path.chmod(0o600)
    assert read_psk(path)
    if os.geteuid() == 0:
        os.chown(path, -1, 0)
        path.chmod(0o640)
        assert read_psk(path)


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
