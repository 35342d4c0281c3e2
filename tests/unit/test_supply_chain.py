"""What the environment and the image are made of: Debian's packages by signature, Python's by hash."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Makes as much of a tree as make-base.sh goes on with; what FAKE says comes first.
DEBOOTSTRAP = """#!/bin/sh
printf '%s\\n' "$@" >"$HOME/arguments"
{says}
for root; do case $root in "$TMPDIR"/*) break ;; esac; done
mkdir -p "$root/etc/apt/sources.list.d" "$root/etc/dpkg/dpkg.cfg.d" "$root/usr/share/doc"
"""
DOCKER = """#!/bin/sh
case $1 in import) cat >/dev/null; echo "$@" >"$HOME/imported" ;; esac
"""


@dataclass
class Maker:
    """make-base.sh with a debootstrap, a docker, a keyring and a PATH of its own."""

    home: Path

    def run(self, says: str = "", keyring: bool = True) -> subprocess.CompletedProcess[str]:
        programs, keyrings, temporary = self.home / "bin", self.home / "keyrings", self.home / "tmp"
        for folder in (programs, keyrings, temporary, self.home / "deploy"):
            folder.mkdir()
        if keyring:
            (keyrings / "debian-archive-keyring.gpg").touch()
        for name in ("cat", "cp", "chmod", "dirname", "echo", "find", "grep", "mkdir", "mktemp", "rm", "sed", "sh", "sort", "tail", "tar", "xargs"):
            (programs / name).symlink_to(shutil.which(name) or name)
        scripts = {"debootstrap": DEBOOTSTRAP.format(says=says), "docker": DOCKER, "id": "#!/bin/sh\necho 0\n"}
        for name, text in {**scripts, "gpg": "", "gpgv": ""}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        for name in ("make-base.sh", "packages.sh"):
            text = (ROOT / "deploy" / name).read_text()
            text = text.replace("/usr/share/keyrings/debian-archive-keyring", f"{keyrings}/debian-archive-keyring")
            (self.home / "deploy" / name).write_text(text.replace(":/usr/sbin:/sbin", ""))
            (self.home / "deploy" / name).chmod(0o755)
        return subprocess.run(
            [self.home / "deploy/make-base.sh", "base:test"], capture_output=True, text=True, timeout=30,
            env={"PATH": str(programs), "HOME": str(self.home), "TMPDIR": str(temporary)},
        )  # fmt: skip

    @property
    def arguments(self) -> list[str]:
        return (self.home / "arguments").read_text().splitlines()

    @property
    def logs(self) -> list[Path]:
        return list((self.home / "tmp").glob("*.log"))


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def test_a_base_is_made_of_signed_packages_only(maker: Maker) -> None:
    done = maker.run()
    assert done.returncode == 0, done.stderr
    assert "--force-check-gpg" in maker.arguments
    assert f"--keyring={maker.home}/keyrings/debian-archive-keyring.gpg" in maker.arguments
    assert "base:test" in (maker.home / "imported").read_text()
    assert not maker.logs and not done.stderr


def test_without_a_keyring_no_base_is_made(maker: Maker) -> None:
    """There is no apt-get here that could bring it."""
    done = maker.run(keyring=False)
    assert done.returncode == 78
    assert "debian-archive-keyring" in done.stderr
    assert not (maker.home / "arguments").exists() and not (maker.home / "imported").exists()


def test_a_warning_is_shown_and_its_log_kept(maker: Maker) -> None:
    done = maker.run("echo I: fine; echo 'W: Retrying failed download'")
    assert done.returncode == 0
    (log,) = maker.logs
    assert "W: Retrying failed download" in done.stderr and str(log) in done.stderr
    assert "I: fine" in log.read_text() and "I: fine" not in done.stderr


def test_a_failure_keeps_its_log(maker: Maker) -> None:
    done = maker.run("echo 'E: Release signed by unknown key'; exit 1")
    assert done.returncode == 1
    (log,) = maker.logs
    assert "unknown key" in done.stderr and str(log) in done.stderr
    assert not (maker.home / "imported").exists()


# pip


def pip_steps() -> list[tuple[str, str]]:
    """Every call of pip that installs or builds, with its file."""
    files = [ROOT / "Dockerfile", ROOT / "Makefile", ROOT / ".ci/run", *ROOT.rglob("*.sh")]
    found = []
    for file in files:
        if {"build", ".venv"} & set(file.relative_to(ROOT).parts):
            continue
        text = file.read_text().replace("\\\n", " ").replace("$(PIP)", "pip install")
        for line in text.splitlines():
            if re.search(r"\bpip\b.* (install|wheel|download)\b", line) and not line.lstrip().startswith(("#", "PIP :=")):
                found += [(file.name, step) for step in line.split(";") if re.search(r"pip\b.* (install|wheel)\b", step)]
    return found


def test_each_pip_step_takes_what_has_a_hash_or_nothing_from_outside() -> None:
    """A source package, too, would bring build requirements that have no hash."""
    steps = pip_steps()
    assert len(steps) >= 7, steps
    for name, step in steps:
        assert "--no-index" in step or ("--require-hashes" in step and "--only-binary" in step), (name, step)


@pytest.mark.parametrize("lock", ["requirements.txt", "requirements-build.txt", "requirements-dev.txt"])
def test_each_locked_package_has_a_version_and_hashes(lock: str) -> None:
    entries = re.findall(r"^(\S+==\S+.*?)(?=^\S|\Z)", (ROOT / lock).read_text(), re.MULTILINE | re.DOTALL)
    assert entries and all("--hash=sha256:" in entry for entry in entries)
    lines = [line for line in (ROOT / lock).read_text().splitlines() if line[:1] not in ("", " ", "#")]
    assert len(lines) == len(entries)


def test_the_image_is_built_with_what_the_tests_are() -> None:
    def locked(name: str) -> dict[str, set[str]]:
        entries = re.findall(r"^(\S+==\S+)(.*?)(?=^\S|\Z)", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
        return {package: set(re.findall("sha256:[0-9a-f]{64}", hashes)) for package, hashes in entries}

    build, dev = locked("requirements-build.txt"), locked("requirements-dev.txt")
    assert {name.partition("==")[0] for name in build} == {"cython", "setuptools"}
    assert all(dev.get(name) == hashes for name, hashes in build.items())
