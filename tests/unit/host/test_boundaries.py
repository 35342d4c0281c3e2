"""host/vramblk-swap against a local user without rights, and against a server whose container is compromised."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import Host

STATE = "/run/vramblk-swap"
LOCK = f"{STATE}/private/lock"
STATUS_SOCKET = "/run/vramblk/status.sock"
AS_ROOT = os.geteuid() == 0


def write_stub(host: Host, name: str, body: str) -> None:
    stub = host.home / "bin" / name
    stub.write_text(f"#!/bin/sh\n{body}\n")
    stub.chmod(0o755)


# ---------------------------------------------------------------- the lock


@contextmanager
def held(path: Path, exclusive: bool = False) -> Iterator[int]:
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield file.fileno()


def test_a_lock_that_another_user_holds_holds_nothing_up(host: Host) -> None:
    """An earlier version's, which anybody could open, and this version's with lax modes."""
    (host.home / "bin" / "flock").unlink()
    host.write(f"{STATE}/lock", "")
    host.write(LOCK, "")
    with held(host.path(f"{STATE}/lock")), held(host.path(LOCK)):
        assert host.run("down").returncode == 0
    assert host.path(LOCK).stat().st_mode & 0o777 == 0o600
    assert host.path(LOCK).parent.stat().st_mode & 0o777 == 0o700
    assert not host.path(f"{STATE}/lock").exists()
    assert host.path(STATE).stat().st_mode & 0o777 == 0o755, "other users may ask for the status"


def test_the_lock_excludes_a_second_one(host: Host) -> None:
    (host.home / "bin" / "flock").unlink()
    host.run("down")
    ended = threading.Event()
    with held(host.path(LOCK), exclusive=True) as lock:
        thread = threading.Thread(target=lambda: (host.run("down"), ended.set()))
        thread.start()
        assert not ended.wait(0.5)
        fcntl.flock(lock, fcntl.LOCK_UN)
        thread.join()


def test_a_lock_that_is_held_names_its_holder_and_wait_waits(host: Host) -> None:
    host.run("down", "--wait")
    holder = host.read(LOCK)
    assert re.fullmatch(r"pid \d+: vramblk-swap down --wait", holder)
    left = host.home / "left"
    write_stub(host, "flock", f'read left <{left}; echo $((left - 1)) >{left}; [ "$left" -le 0 ]')
    left.write_text("60\n")
    refused = host.run("down")
    assert refused.returncode == 1
    assert f"another vramblk-swap has been running for ten minutes ({holder})" in refused.stderr
    left.write_text("70\n")
    waited = host.run("down", "--wait")
    assert waited.returncode == 0, waited.stderr
    assert waited.stderr.count(f"waiting for another vramblk-swap ({holder})") == 1


@pytest.mark.parametrize("path", [STATE, f"{STATE}/private", LOCK])
@pytest.mark.parametrize("kind", ["a link", *(["another user's"] if AS_ROOT else [])])
def test_a_lock_in_foreign_hands_is_refused(host: Host, path: str, kind: str) -> None:
    host.run("down")
    if kind == "a link":
        host.path(path).rename(host.root / "elsewhere")
        host.path(path).symlink_to(host.root / "elsewhere")
    else:
        os.chown(host.path(path), 1, -1)
    result = host.run("down")
    assert result.returncode == 1
    assert f"{host.path(path)} is a symbolic link or belongs to another user" in result.stderr


def test_records_that_others_could_write_are_not_undone(host: Host) -> None:
    host.run("up")
    host.path(STATE).chmod(0o777)
    before = host.state()
    result = host.run("down")
    assert result.returncode == 1 and "others may write to" in result.stderr and host.state() == before


# ---------------------------------------------------------------- names in records


def test_a_value_of_several_words_and_of_globs_is_restored(host: Host) -> None:
    subprocess.run(
        [host.home / "make-devices"], env={"VRAMBLK_TEST_ROOT": str(host.root), "PATH": "/usr/bin:/bin"}
    )
    host.write("/sys/block/nbd0/queue/read_ahead_kb", "* of /*\n")
    assert host.run("up").returncode == 0
    assert host.run("down").returncode == 0
    assert host.read("/sys/block/nbd0/queue/read_ahead_kb") == "* of /*"


def test_records_of_an_earlier_version_are_undone(host: Host) -> None:
    """A machine whose script was replaced under live swap: fields were separated by spaces."""
    before = host.state()
    host.run("up")
    host.write(f"{STATE}/records", host.path(f"{STATE}/records").read_text().replace("\t", " "))
    assert host.run("down").returncode == 0 and host.state() == before
