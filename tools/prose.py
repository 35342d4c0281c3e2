"""``python -m tools.prose [FILE ...]``: few rules for prose, so that each sentence is understood at once.

1. No word that the glossary refuses (docs/reference/glossary.md, last column and last line).
2. Programs log, report, return or require. They do not say, tell, know or want.
3. A sentence has at most ``MOST_WORDS`` words.

Without files it checks every page of the repository, and the comments and docstrings of the program by the
first two rules. It does not check code and quoted messages. Exits 1 if something is found, and prints each as
FILE:LINE: text.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"
MOST_WORDS = 40
#: A changelog quotes, and GitHub's templates are forms.
UNCHECKED = ("CHANGELOG.md", ".github/", "bench/results/")

_PROGRAMS = (
    "server|engine|workers?|supervisor|observer|clients?|kernel|driver|script|program|log|message|event|page|status"
    "|check|table|column|line|Docker|dockerd|Compose|systemd|runtime|device|test|tests|report|result|answer"
)
_SPEAKS = re.compile(rf"(?:\b(?:{_PROGRAMS})|`[^`]+`) (says?|said|tells?|told|knows?|knew|wants?|wanted)\b")
_CODE = re.compile(r"(`+)(.+?)\1")
_END_OF_SENTENCE = re.compile(r"[.!?:][)*\"]*\s+(?=[A-Z`(*\"\[]|$)|;\s")


@dataclass(frozen=True)
class Text:
    """A paragraph, a list item, a cell of a table, a comment or a docstring.

    Attributes:
        line: where it begins.
        long: whether its sentences are counted.
    """

    file: str
    line: int
    words: str
    long: bool = True


@cache
def refused_words() -> re.Pattern[str]:
    """The words of the glossary's last column and last line, with plurals and past tenses."""
    text = GLOSSARY.read_text()
    words = re.findall(r"^\| [^|]+ \| [^|]+ \| (\w[\w, ]*) \|$", text, re.MULTILINE)[1:]
    last = re.search(r"^Other words and phrases that the linter refuses: (.+?)\.$", text, re.M | re.S)
    assert last is not None
    lists = [*words, re.sub(r"\s+\([^)]*\)", "", last[1])]
    every = [r"\s+".join(map(re.escape, word.split())) for each in lists for word in each.split(",")]
    return re.compile(rf"\b({'|'.join(every)})(?:s|d|ed)?\b", re.IGNORECASE)


def findings(text: Text) -> Iterator[str]:
    """What the rules find in one text."""
    place = f"{text.file}:{text.line}:"
    plain = _CODE.sub("`x`", text.words)
    for match in refused_words().finditer(plain):
        yield f"{place} {match[0]}: see docs/reference/glossary.md"
    for match in _SPEAKS.finditer(plain):
        yield f"{place} {match[0]}: programs log, report, return, expect or require"
    for sentence in _END_OF_SENTENCE.split(plain) if text.long else ():
        count = len(sentence.split())
        if count > MOST_WORDS:
            start = " ".join(sentence.split()[:6])
            yield f"{place} {count} words: make two sentences or a list of: {start} ..."


def markdown(file: str, text: str) -> Iterator[Text]:
    """Paragraphs, list items and cells; blocks of code, quoted messages and generated marks are left out."""
    begin, lines, fenced = 0, list[str](), False
    for number, line in enumerate([*text.split("\n"), ""], 1):
        starts = re.match(r"\s*(?:[-*]|\d+\.) |\||#", line)
        if lines and (starts or not line.strip() or line.startswith(("```", ">"))):
            yield Text(file, begin, " ".join(lines))
            lines = []
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith(("    ", ">", "<!--")) or not line.strip():
            continue
        elif line.lstrip().startswith("|"):
            yield from (Text(file, number, cell.strip()) for cell in line.split("|") if cell.strip())
        else:
            begin = begin if lines else number
            lines.append(re.sub(r"^\s*(?:[-*]|\d+\.|#+) ", "", line).strip())


def python(file: str, source: str) -> Iterator[Text]:
    """Comments and docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(file, token.start[0], token.string.lstrip("#: "), long=False)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if words := ast.get_docstring(node):
                yield Text(file, node.body[0].lineno, " ".join(words.split()), long=False)


def files() -> list[Path]:
    """Pages and Python files that git has or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.md", "vramblk/*.py", "tools/*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    names = [name for name in listed.splitlines() if not name.startswith(UNCHECKED)]
    return [ROOT / name for name in names if (ROOT / name).exists()]


def texts(path: Path) -> Iterator[Text]:
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
    if path.resolve() == GLOSSARY:
        return iter(())
    return (python if path.suffix == ".py" else markdown)(name, path.read_text())


def main(arguments: list[str]) -> int:
    found = [
        finding
        for path in ([Path(each) for each in arguments] or files())
        for text in texts(path)
        for finding in findings(text)
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
