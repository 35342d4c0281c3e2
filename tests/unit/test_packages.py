"""Set-up of the tests: which packages it asks apt-get for, and what it prints, with an apt-get that installs nothing."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
GROUPS = sorted(path.parent.name for path in TESTS.glob("*/packages.txt"))
#: All that the scripts use. Nothing else of this machine is on their PATH, so nothing that groups need is there.
TOOLS = (
    "awk", "bash", "cat", "dirname", "echo", "find", "git", "grep", "make", "mkdir", "mktemp", "paste", "rm", "sed", "sh",
    "sort", "touch", "xargs",
)  # fmt: skip

FAKE_APT_GET = """#!{python}
# state.json: "lists" and "mirror" are packages and the program that each brings; "removes" is what a package would remove.
import json, os, sys
from pathlib import Path
home = Path(__file__).resolve().parent.parent
state = json.loads((home / "state.json").read_text())
words = sys.argv[1:]
with (home / "calls").open("a") as calls:
    print(*words, file=calls)
def fail(message):
    sys.exit(print("E: " + message) or 100)
if "update" in words:
    state["lists"] = state["mirror"]
    (home / "state.json").write_text(json.dumps(state))
    sys.exit(0)
simulated = "--simulate" in words or "-s" in words
release = words[words.index("-t") + 1] if "-t" in words else ""
packages = [word for word in words[words.index("install") + 1:] if not word.startswith("-") and word != release]
for package in packages:
    if package not in state["lists"]:
        fail("Unable to locate package " + package)
removed = [state["removes"][package] for package in packages if package in state["removes"] and release != "backports"]
if removed:
    print("The following packages will be REMOVED:\\n ", *removed)
    print("The following NEW packages will be installed:\\n ", *packages)
    if "--no-remove" in words:
        fail("Packages need to be removed but remove is disabled.")
for package in packages:
    print("Inst lib" + package + " [1.0] (1.1 Debian:12 [amd64])")
    print("Inst " + package + " (1.1 Debian:12 [amd64])")
if not simulated:
    with (home / "installed").open("a") as installed:
        print(*packages, file=installed)
    (home / "seen_when_installing").write_text((home / "terminal").read_text())
    if state["downloads"] == "fail" and state["lists"] is not state["mirror"] and not (home / "failed").exists():
        (home / "failed").touch()
        fail("Failed to fetch: 404 Not Found")
    for package in packages:
        for program in state["lists"][package]:
            (home / "bin" / program).write_text("")
            (home / "bin" / program).chmod(0o755)
"""


@dataclass
class Machine:
    """A directory with the scripts, and a PATH with a fake apt-get and few other programs."""

    home: Path

    def has(
        self,
        lists: dict[str, list[str]],
        mirror: dict[str, list[str]] | None = None,
        removes: dict[str, str] | None = None,
        downloads: str = "work",
    ) -> None:
        state = {"lists": lists, "mirror": mirror or lists, "removes": removes or {}, "downloads": downloads}
        (self.home / "state.json").write_text(json.dumps(state))

    def fake(self, name: str, text: str) -> None:
        (self.home / "bin" / name).write_text(text)
        (self.home / "bin" / name).chmod(0o755)

    def run(self, *command: str) -> int:
        """Exit status; both outputs go to ``terminal``, as they come."""
        environment = {"PATH": str(self.home / "bin"), "HOME": str(self.home)}
        with (self.home / "terminal").open("w") as terminal:
            return subprocess.run(
                command, cwd=self.home, env=environment, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal,
                timeout=60,
            ).returncode  # fmt: skip

    def set_up(self, *groups: str) -> None:
        assert self.run("tests/setup.sh", *groups) == 0, self.terminal

    @property
    def terminal(self) -> str:
        return (self.home / "terminal").read_text()

    @property
    def calls(self) -> list[str]:
        calls = self.home / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    @property
    def installed(self) -> set[str]:
        """Every package that apt-get was asked to install, not only to simulate."""
        installed = self.home / "installed"
        return set(installed.read_text().split()) if installed.exists() else set()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    one = Machine(tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    one.fake("apt-get", FAKE_APT_GET.format(python=sys.executable))
    one.fake("apt-cache", '#!/bin/sh\necho " $2 | 1.1 | http://debian.example stable/main amd64 Packages"\n'
                'echo " $2 | 2.0 | http://debian.example backports/main amd64 Packages"\n')  # fmt: skip
    one.fake("dpkg-query", "#!/bin/sh\nfor last; do :; done\ncase $last in old-*) echo \"$last 9.9\" ;; *) exit 1 ;; esac\n")
    one.fake("id", "#!/bin/sh\necho 0\n")
    for name in ("tests/setup.sh", "deploy/packages.sh", "Makefile"):
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    for group, lines in {"soup": "spoon cutlery\n/nowhere/ladle* ladle\n", "tea": "cup china\n"}.items():
        (tmp_path / "tests" / group).mkdir()
        (tmp_path / "tests" / group / "packages.txt").write_text(lines)
    one.has({"cutlery": ["spoon"], "ladle": [], "china": ["cup"]})
    return one


def test_a_group_installs_its_own_packages_only(machine: Machine) -> None:
    machine.set_up("tea")
    assert machine.installed == {"china"}
    machine.set_up("soup")
    assert machine.installed == {"china", "cutlery", "ladle"}


def test_nothing_is_ever_removed(machine: Machine) -> None:
    """Not by apt-get's own choice, also not in a simulation, and not by any other command."""
    machine.set_up("soup")
    machine.set_up("tea")
    assert machine.calls
    for call in machine.calls:
        assert " install " in f" {call} " and "--no-remove" in call.split(), call
        assert not {"remove", "purge", "autoremove", "dist-upgrade"} & set(call.split()), call


def test_what_would_be_removed_is_named_and_stays(machine: Machine) -> None:
    """The package is left out, the group's other packages are installed, and what to do is printed."""
    machine.has({"cutlery": ["spoon"], "ladle": []}, removes={"cutlery": "old-plates"})
    machine.fake("apt-cache", "#!/bin/sh\n")
    machine.set_up("soup")
    assert machine.installed == {"ladle"}
    assert not any("update" in call for call in machine.calls)
    (line,) = [line for line in machine.terminal.splitlines() if "remove" in line]
    assert "tests/soup: cutlery is left out" in line and "old-plates 9.9" in line
    assert "apt's sources" in line and "apt-get install cutlery" in line
    assert "still missing: spoon (package cutlery)" in machine.terminal


def test_a_package_comes_from_the_release_in_which_it_removes_nothing(machine: Machine) -> None:
    """qemu's parts have to be of one version, and one of them may be from backports."""
    machine.has({"cutlery": ["spoon"], "ladle": []}, removes={"cutlery": "old-plates"})
    machine.set_up("soup")
    assert machine.installed == {"cutlery", "ladle"}
    assert any("-t backports cutlery" in call and "--simulate" not in call for call in machine.calls)
    assert "left out" not in machine.terminal


def test_packages_are_named_before_they_are_installed(machine: Machine) -> None:
    """With those that they depend on, and what is upgraded for them."""
    machine.set_up("tea")
    seen = (machine.home / "seen_when_installing").read_text()
    assert seen == "tests/tea: apt-get install china, which installs libchina (upgrade), china\n"


def test_what_is_missing_after_the_installation_is_named(machine: Machine) -> None:
    """Here a package does not bring what was expected of it, and another cannot be had."""
    machine.has({"ladle": ["other"]})
    machine.set_up("soup")
    assert "cutlery is left out: Unable to locate package cutlery" in machine.terminal
    last = machine.terminal.splitlines()[-1]
    assert last == "tests/soup: still missing: spoon (package cutlery), /nowhere/ladle* (package ladle)"


def test_nothing_is_done_where_nothing_is_missing(machine: Machine) -> None:
    machine.fake("cup", "")
    machine.set_up("tea")
    assert machine.calls == [] and machine.terminal == ""


def test_a_proof_may_have_alternatives_and_wildcards(machine: Machine) -> None:
    (machine.home / "cup-1.2").touch()
    (machine.home / "tests/tea/packages.txt").write_text(f"mug|{machine.home}/cup-* china\n")
    machine.set_up("tea")
    assert machine.calls == []


@pytest.mark.parametrize("lists", [{}, {"ladle": []}])
def test_lists_are_updated_if_they_lack_a_package(machine: Machine, lists: dict[str, list[str]]) -> None:
    machine.has(lists, mirror={"cutlery": ["spoon"], "ladle": []})
    machine.set_up("soup")
    assert machine.installed == {"cutlery", "ladle"}
    assert len([call for call in machine.calls if "update" in call]) == 1
    assert "apt-get update" in machine.terminal


def test_lists_are_updated_if_a_download_fails(machine: Machine) -> None:
    machine.has({"china": ["cup"]}, downloads="fail")
    machine.set_up("tea")
    assert (machine.home / "bin/cup").exists()
    assert len([call for call in machine.calls if "update" in call]) == 1
    assert "missing" not in machine.terminal


def test_without_root_the_command_is_printed(machine: Machine) -> None:
    machine.fake("id", "#!/bin/sh\necho 1000\n")
    machine.set_up("soup")
    assert machine.calls == []
    assert "Type: sudo apt-get install --no-remove --no-install-recommends cutlery ladle\n" in machine.terminal


def test_without_apt_get_the_packages_are_named(machine: Machine) -> None:
    (machine.home / "bin/apt-get").unlink()
    machine.set_up("soup")
    assert "tests/soup: these Debian packages are missing: cutlery ladle." in machine.terminal
    assert "package manager" in machine.terminal and "sudo" not in machine.terminal


def test_make_names_what_it_installs_for_the_compiler(machine: Machine) -> None:
    """`make install`, which `make run` and `make test` begin with."""
    machine.has({"gcc": ["cc"], "libc6-dev": [], "python3-dev": []})
    stand_in(machine, "python", f"echo {machine.home}/include")
    (machine.home / "setup.py").touch()
    machine.run("make", "-o", "venv/.installed", "install", "VENV=venv", f"PYTHON={sys.executable}")
    assert {"gcc", "python3-dev"} <= machine.installed
    assert all("--no-remove" in call.split() for call in machine.calls)
    assert "make install: apt-get install gcc" in (machine.home / "seen_when_installing").read_text()


def test_make_names_what_it_installs_for_the_virtual_environment(machine: Machine) -> None:
    """A Debian machine without python3-venv; without the package nothing can go on."""
    machine.has({"python3-venv": []})
    for name in ("pyproject.toml", "requirements-dev.txt"):
        (machine.home / name).touch()
    machine.fake("python", f'#!/bin/sh\ncase $2 in *sysconfig*) echo {machine.home}/lib ;; *) exit 1 ;; esac\n')
    assert machine.run("make", "venv/.installed", "VENV=venv", f"PYTHON={machine.home}/bin/python") != 0
    assert machine.installed == {"python3-venv"}
    assert all("--no-remove" in call.split() for call in machine.calls)
    assert "make install: apt-get install python3-venv" in (machine.home / "seen_when_installing").read_text()
    assert "ensurepip/__init__.py (package python3-venv)" in machine.terminal


def test_make_lint_installs_shellcheck(machine: Machine) -> None:
    machine.has({"shellcheck": ["shellcheck"]})
    for name in ("ruff", "mypy", "lint-imports", "python", "zizmor"):
        stand_in(machine, name, "exit 0")
    machine.run("make", "-o", "install", "lint", "VENV=venv", f"PYTHON={sys.executable}")
    assert machine.installed == {"shellcheck"}
    assert "make lint: apt-get install shellcheck" in (machine.home / "seen_when_installing").read_text()


def stand_in(machine: Machine, name: str, text: str) -> None:
    programs = machine.home / "venv/bin"
    programs.mkdir(parents=True, exist_ok=True)
    (programs / name).write_text(f"#!/bin/sh\n{text}\n")
    (programs / name).chmod(0o755)


# ------------------------------------------------------------------------------- The real lists

#: Docker Engine is the user's choice, kustomize is unpacked by tests/container/setup.sh, hadolint comes with the virtual
#: environment, sh, sed, bash and sleep are on every machine; the others are not needed.
_NOT_LISTED = {
    "docker", "kustomize", "hadolint", "sh", "sed", "bash", "sleep", "systemd-analyze", "nvidia-container-runtime-hook",
    "nvidia-smi", "mdadm", "visudo",
}  # fmt: skip
_ONE_PROGRAM = ("which", "find_program", "program")


def proofs(group: str) -> set[str]:
    lines = (TESTS / group / "packages.txt").read_text().splitlines()
    assert all(len(line.split()) == 2 for line in lines), group
    return {proof for line in lines for proof in line.split()[0].split("|")}


@pytest.mark.parametrize("group", GROUPS)
def test_what_a_group_asks_for_is_in_its_list(group: str) -> None:
    """Programs in requires(...), which(...), find_program(...), program(...) and _NEEDED of the group's own files."""
    wanted: set[str] = set()
    for path in (TESTS / group).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found: list[ast.expr] = []
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name == "requires" or (name in _ONE_PROGRAM and len(node.args) == 1):
                    found = node.args
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_NEEDED":
                found = getattr(node.value, "elts", [])
            wanted |= {each.value for each in found if isinstance(each, ast.Constant)}
    assert wanted - _NOT_LISTED <= proofs(group)


def test_only_the_group_that_is_run_by_name_needs_a_machine_emulator() -> None:
    """It breaks qemu-utils of another version, which others need."""
    lists = {group: (TESTS / group / "packages.txt").read_text() for group in GROUPS}
    assert [group for group, text in lists.items() if "qemu-system" in text] == ["qemu"]
