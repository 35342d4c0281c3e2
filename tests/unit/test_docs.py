"""The pages at the top and in docs/ name what exists: links, make targets, subcommands, options, files, modules, messages.

In docs/guides/troubleshooting.md a line that begins with ``> `` quotes a message of the program; ``…`` stands
for what differs. Nothing else may stand behind such a bar.
"""

from __future__ import annotations

import ast
import errno
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests import guides
from vramblk.cli import COMMANDS, make_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
#: Options named without their command, of programs that are not ours.
FOREIGN_OPTIONS = frozenset({"--add", "--gpus", "--network", "--iodepth", "--build-arg"})
_FOLDERS = "bench|deploy|docs|host|share|tests|tools|vramblk"
_PATH = re.compile(
    rf"(?:{_FOLDERS})/[\w./-]*\w/?|(?:compose[\w.-]*|entrypoint|requirements)\.(?:yaml|sh|txt)"
)
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SOURCE = re.compile(r"[\w/]+\.(?:py|cl|html)")
#: Made by users or by a run.
_NOT_HERE = frozenset({"compose.override.yaml", "bench/results/"})


# ------------------------------------------------------------------------------- Markdown


def code(text: str) -> Iterator[str]:
    """Code spans, and lines of fenced and of indented blocks, each on one line."""
    for fenced in _FENCED.findall(text):
        yield from _lines(fenced)
    for block in re.split(r"\n\s*\n", _FENCED.sub("", text)):
        lines = block.split("\n")
        if all(line.startswith("    ") for line in lines if line):
            yield from _lines(block)
        else:
            for match in re.finditer(r"(`+)(.+?)\1", block, re.DOTALL):
                yield " ".join(match[2].split())


def _lines(block: str) -> list[str]:
    """A command that a backslash continues is one line."""
    return [line.strip() for line in re.sub(r"\\\n\s*", "", block).split("\n")]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        base = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number, anchor = 0, base
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found


def broken_links(page: Path, text: str) -> list[str]:
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        content = text if file == page else file.read_text() if anchor and file.exists() else ""
        if not file.exists() or (anchor and anchor not in anchors(content)):
            found.append(target)
    return found


# ------------------------------------------------------------------------------- commands


@cache
def make_targets() -> frozenset[str]:
    rules = re.findall(r"^([a-z][\w -]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return frozenset(name for rule in rules for name in rule.split())


def unknown_targets(text: str) -> list[str]:
    named = [name for each in code(text) for name in re.findall(r"\bmake ([a-z][\w-]*)", each)]
    return [name for name in named if name not in make_targets()]


@cache
def options_of(subcommand: str) -> frozenset[str]:
    return frozenset(make_parser(subcommand)._option_string_actions)


@cache
def swap_words() -> tuple[frozenset[str], frozenset[str]]:
    """Commands and options of the host script, from the places where it decides about them."""
    text = (ROOT / "host" / "vramblk-swap").read_text()
    line = re.search(r"^(up \| [a-z |]+)\) ;;$", text, re.MULTILINE)
    assert line is not None
    return frozenset(line[1].split(" | ")), frozenset(
        re.findall(r"^    (?:-h \| )?(--[a-z-]+)\)", text, re.M)
    )


@cache
def script_options() -> frozenset[str]:
    """Options of bench/ and the tests' own programs."""
    files = [*(ROOT / "bench").glob("*.py"), ROOT / "tests" / "vm" / "matrix.py"]
    return frozenset(
        name for file in files for name in re.findall(r"add_argument\(\s*\"(--[a-z-]+)", file.read_text())
    )


def known_options() -> frozenset[str]:
    own = frozenset[str]().union(*map(options_of, COMMANDS))
    return own | swap_words()[1] | script_options() | FOREIGN_OPTIONS


def words_after(command: str, line: str) -> list[list[str]]:
    """The words behind each call of a command, up to the shell's next operator."""
    found = []
    for match in re.finditer(rf"(?:^|[\s/]){command}(?=\s|$)([^|;&#)>]*)", line):
        try:
            found.append(shlex.split(match[1]))
        except ValueError:
            found.append(match[1].split())
    return found


def unknown_words(text: str) -> list[str]:
    """Subcommands and options that nothing knows, each with the code that names it."""
    found = []
    for line in code(text):
        for words in words_after("vramblk", line):
            if "--entrypoint" not in line:
                found += [f"{word} in {line}" for word in _unknown_to_vramblk(words)]
        for words in words_after("vramblk-swap", line):
            words = words[: words.index("--")] if "--" in words else words  # the command of yield
            commands, options = swap_words()
            wrong = [word for word in words[:1] if re.fullmatch("[a-z]+", word) and word not in commands]
            wrong += [word for word in words if word.startswith("--") and word not in options]
            found += [f"{word} in {line}" for word in wrong]
        if line.startswith("-"):
            flags = re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)
            found += [f"{flag} in {line}" for flag in flags if flag not in known_options()]
    return found


def _unknown_to_vramblk(words: list[str]) -> Iterator[str]:
    if words[:1] == ["vramblk"]:  # the service, and in it the command
        words = words[1:]
    subcommand = "serve"
    if words and re.match("[a-z]", words[0]):
        subcommand = words[0]
        if subcommand not in COMMANDS:
            yield subcommand
            return
    for word in words:
        if word.startswith("-") and word.partition("=")[0] not in options_of(subcommand):
            yield word


@cache
def source_files() -> frozenset[str]:
    """Every way in which pages name a source file: from the root, from the package, by its name alone."""
    found = [path for folder in _FOLDERS.split("|") for path in (ROOT / folder).rglob("*.*")]
    names = {path.relative_to(ROOT).as_posix() for path in found}
    return frozenset(
        names | {name.removeprefix("vramblk/") for name in names} | {path.name for path in found}
    )


def missing_paths(text: str) -> list[str]:
    spans = list(code(text))
    found = [path for path in spans if _PATH.fullmatch(path) and not (ROOT / path).exists()]
    found += [name for name in spans if _SOURCE.fullmatch(name) and name not in source_files()]
    return [name for name in found if name not in _NOT_HERE]


# ------------------------------------------------------------------------------- messages


def quoted_messages(text: str) -> list[str]:
    return re.findall(r"^> (.+)$", text, re.MULTILINE)


@cache
def templates() -> tuple[tuple[str, ...], ...]:
    """The texts that each source file can print, what is put in as NUL or as the shell's variable."""
    shell = [
        ROOT / "host" / "vramblk-swap", *(ROOT / "host" / "lib").glob("*.sh"), ROOT / "host" / "install.sh",
        ROOT / "entrypoint.sh",
        *(ROOT / "deploy").rglob("*.sh"), *ROOT.glob("compose*.yaml"),
    ]  # fmt: skip
    return (
        *(tuple(_python_texts(path.read_text())) for path in (ROOT / "vramblk").rglob("*.py")),
        *(tuple(_shell_texts(path.read_text())) for path in shell),
    )


def _python_texts(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(each.value) if isinstance(each, ast.Constant) else "\0" for each in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _shell_texts(source: str) -> Iterator[str]:
    joined = re.sub(r"['\"]?\s*\\\n\s*['\"]?", " ", source.replace("'\\''", "'"))
    for line in joined.split("\n"):
        if not line.lstrip().startswith("#"):
            yield line.replace("\\", "")


@cache
def system_texts() -> tuple[str, ...]:
    return tuple(map(os.strerror, errno.errorcode))


def in_the_source(message: str) -> bool:
    """Whether one text of the source gives this message, or texts of one file and the system's put together."""
    if len(re.findall("[a-z]", message)) < 6:
        return False
    whole = re.compile(".*?".join(map(re.escape, message.split("…"))))
    if any(whole.search(text) for texts in templates() for text in texts):
        return True
    pieces = [piece.strip(" .,:;()") for piece in re.split("…|; |: ", message)]
    pieces = [piece for piece in pieces if len(piece) >= 6]
    if max(map(len, pieces), default=0) < 12:
        return False
    return any(
        all(any(piece in text for text in (*texts, *system_texts())) for piece in pieces)
        for texts in templates()
    )


# ------------------------------------------------------------------------------- modules


def described_modules() -> set[str]:
    """Files named in the table of docs/design/architecture.md, below vramblk/."""
    _, _, table = (ROOT / "docs" / "design" / "architecture.md").read_text().partition("### vramblk/")
    return set(re.findall(r"^\| `([\w./]+)` \| \S", table, re.MULTILINE))


def modules() -> set[str]:
    """All modules, kernels and pages; packages speak through their modules."""
    package = ROOT / "vramblk"
    found = (path for kind in ("py", "cl", "html") for path in package.rglob(f"*.{kind}"))
    names = {path.relative_to(package).as_posix() for path in found}
    return {name for name in names if not name.endswith("/__init__.py")}


# ------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
class TestEveryPage:
    def test_links_lead_somewhere(self, page: Path) -> None:
        assert broken_links(page, page.read_text()) == []

    def test_make_targets_exist(self, page: Path) -> None:
        assert unknown_targets(page.read_text()) == []

    def test_subcommands_and_options_exist(self, page: Path) -> None:
        assert unknown_words(page.read_text()) == []

    def test_paths_of_the_repository_exist(self, page: Path) -> None:
        assert missing_paths(page.read_text()) == []


def test_quoted_messages_are_in_the_source() -> None:
    messages = quoted_messages((ROOT / "docs" / "guides" / "troubleshooting.md").read_text())
    assert len(messages) > 100
    assert [message for message in messages if not in_the_source(message)] == []


def test_each_module_has_its_line_in_the_architecture() -> None:
    assert modules() - described_modules() == set(), "without a line in docs/design/architecture.md"
    assert described_modules() - modules() == set(), "only in docs/design/architecture.md"


def test_pages_that_sources_name_exist() -> None:
    listed = subprocess.run(
        ["git", "grep", "-hoE", r"\bdocs/[a-z/-]+\.md", "--", ".", ":!CHANGELOG.md", ":!tests/unit/test_docs.py"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    ).stdout.split()  # fmt: skip
    assert len(listed) > 50
    assert sorted({name for name in listed if not (ROOT / name).exists()}) == []


def test_readme_shows_what_a_newcomer_needs() -> None:
    """What it is in two sentences, a picture, two commands, whether it fits; then the rest, every vendor in it."""
    text = (ROOT / "README.md").read_text()
    title, what, picture, first, *_ = text.split("\n\n")
    assert title == "# vramblk"
    assert what.count(".") == 2
    assert picture.startswith("```text\n")
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make up", "make up SWAP=1"]
    fits, _, rest = text.partition("## Start by GPU")
    table = fits.partition("## Is this for me?")[2]
    assert len(re.findall(r"^\| (?!You want|---)", table, re.MULTILINE)) == 4
    assert "**What never ran:**" in fits and "make test" not in fits
    for command in ("make status", "vramblk top", "curl http://127.0.0.1:10810/metrics", "nvidia-smi", "docker run -d"):
        assert command in rest
    for vendor in ("NVIDIA", "AMD", "Intel", "none"):
        assert re.search(rf"^\| {vendor} \|", rest, re.MULTILINE), vendor
    assert re.findall(r"^\| (\d+) \|", rest, re.MULTILINE) == ["0", "1", "2", "78"], "exit codes"


def test_readme_and_guide_print_the_same_docker_run() -> None:
    """tests/container runs the guide's."""
    (one,) = [line for line in code((ROOT / "README.md").read_text()) if line.startswith("docker run -d")]
    (other,) = [line for line in code((ROOT / "docs/guides/containers.md").read_text()) if line.startswith("docker run -d")]
    assert one == other


def test_readme_mounts_a_disk_with_the_commands_of_the_guide() -> None:
    """tests/vm runs the guide's."""
    readme = list(code((ROOT / "README.md").read_text()))
    commands = guides.commands("docs/guides/disk-at-boot.md", "By hand")
    assert len(commands) >= 7
    start = readme.index(commands[0])
    assert readme[start : start + len(commands)] == commands


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (unknown_targets, "`make up`, make sure", "    make everything"),
        (unknown_words, "`vramblk check --size 64M`", "`vramblk chekc`"),
        (unknown_words, "    .venv/bin/vramblk --size 1G | cat --no", "    vramblk --sise 1G"),
        (unknown_words, "`vramblk status --health`", "`vramblk top --health`"),
        (
            unknown_words,
            "`docker compose exec vramblk vramblk status`",
            "`docker exec vramblk vramblk stats`",
        ),
        (unknown_words, "`sudo host/vramblk-swap up --dry-run`", "`vramblk-swap upp`"),
        (unknown_words, "`vramblk-swap status --json`", "`vramblk-swap up --dry`"),
        (unknown_words, "`--metrics-addr 0.0.0.0:10810`", "`--metric-addr`"),
        (unknown_words, "    vramblk \\\n        --size 1G", "    vramblk \\\n        --sise 1G"),
        (unknown_words, "```sh\nvramblk check\n```", "```sh\nexit\n\nvramblk chekc\n```"),
        (missing_paths, "`vramblk/nbd/` and `docs/swap.md`", "`tests/wire/test_nothing.py`"),
        (missing_paths, "`nbd/replies.py`, `page.html`", "`nbd/nothing.py`"),
    ],
)
def test_checks_tell_good_from_bad(check: Callable[[str], list[str]], good: str, bad: str) -> None:
    assert check(good) == []
    assert check(bad) != []


@pytest.mark.parametrize(
    ("target", "fine"),
    [
        ("docs/swap.md", True),
        ("docs/swap.md#priority", True),
        ("#a-b---c", True),
        ("https://example.org/x", True),
        ("docs/nothing.md", False),
        ("docs/swap.md#nothing", False),
        ("#nothing", False),
    ],
)
def test_links_are_followed_to_their_anchor(target: str, fine: bool) -> None:
    assert (broken_links(ROOT / "README.md", f"## A b: `--c`\n\n[x]({target})") == []) is fine


@pytest.mark.parametrize(
    ("message", "known"),
    [
        ("this container was given no GPU; start it with …", True),
        ("device … is ambiguous; give more of the name or the PCI address", True),
        ("map:…: No such file or directory; give the path of a device or file", True),
        ("swap mode needs a GPU, and this host shows none: swapping to CPU memory", True),
        ("none of the … NBD devices is free", True),
        ("this container was given two GPUs; start it with …", False),
        ("map:…: No such file or directory; give the path of a unicorn", False),
        ("none of the … NBD devices is free; buy one", False),
        ("…: …", False),
    ],
)
def test_messages_are_told_from_inventions(message: str, known: bool) -> None:
    assert in_the_source(message) is known
