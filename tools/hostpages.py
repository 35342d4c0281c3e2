"""vramblk-swap's man page, its page in docs/ and the example of /etc/default/vramblk, from its ``--help``.

Also the names of the variables that it does not warn of, from the tables.

``python -m tools.shellgen`` writes them.
"""

from __future__ import annotations

import re
import subprocess
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.generated import roff
from tools.variables import FOREIGN_VARIABLES
from vramblk.config.options import OPTIONS

SCRIPT = Path(__file__).resolve().parents[1] / "host" / "vramblk-swap"
MAN = "share/man/man8/vramblk-swap.8"
EXAMPLE = "host/vramblk.default"
PAGE = "docs/reference/vramblk-swap.md"
NAMES = "host/lib/names.sh"

_NOTE = "Made by python -m tools.shellgen from vramblk-swap --help."
_ROW = re.compile(r"  (\S+) +(.*?)(?: \[(.*)\])?")
_CONTINUED = re.compile(r"\n {4,}")


def names() -> str:
    """The text of names.sh: the variables of this script, of the server, and of other programs."""
    foreign = [variable for variable in FOREIGN_VARIABLES if variable.user != "tests"]
    lists = {
        "own_names": [variable.name for variable in foreign if variable.user == "host script"],
        "server_names": [option.environment for option in OPTIONS],
        "other_names": [variable.name for variable in foreign if variable.user != "host script"],
    }
    lines = [
        "# shellcheck shell=sh disable=SC2034",
        "# Made by python -m tools.shellgen from the tables of variables.",
    ]
    for name, found in lists.items():
        words = " ".join(each.removeprefix("VRAMBLK_") for each in found)
        lines += ["", *textwrap.wrap(f"{name}='{words}'", 120, break_long_words=False)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Row:
    """One line of the help.

    Attributes:
        default: what stands in brackets at the end: a value, a description, or both with a comma between.
    """

    name: str
    text: str
    default: str

    @property
    def value(self) -> str:
        """The default as it can be assigned; empty if only the script can compute it."""
        value = self.default.partition(",")[0]
        return "" if " " in value else value

    @property
    def sentence(self) -> str:
        return f"{self.text[:1].upper()}{self.text[1:]}."


@dataclass(frozen=True)
class Help:
    """What ``vramblk-swap --help`` prints, by section."""

    commands: tuple[Row, ...]
    options: tuple[Row, ...]
    settings: tuple[Row, ...]
    statuses: tuple[Row, ...]


@cache
def script_help() -> Help:
    """Ask the script; ``ValueError`` if a line of its help has another form than expected."""
    text = subprocess.run(
        ["sh", SCRIPT, "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return parse(text)


def parse(text: str) -> Help:
    """The sections of a help text; each line is a name, blanks, a description, and a default in brackets.

    A line that is indented more continues the one before it.
    """
    usage, commands, options, settings, statuses = (
        _CONTINUED.sub(" ", part).splitlines() for part in text.split("\n\n")
    )
    titles = usage[0].split()[0], settings[0].split(",")[0], statuses[0]
    if titles != ("usage:", "Settings", "Exit status:"):
        raise ValueError(f"the sections of the help are {titles}")
    return Help(_rows(commands), _rows(options), _rows(settings[1:]), _rows(statuses[1:]))


def _rows(lines: list[str]) -> tuple[Row, ...]:
    matches = [_ROW.fullmatch(line) for line in lines]
    if None in matches:
        raise ValueError(f"not a name and its description: {lines[matches.index(None)]!r}")
    return tuple(Row(match[1], match[2], match[3] or "") for match in matches if match)


def example() -> str:
    """host/vramblk.default: every setting of the script, commented out, with its default."""
    lines = [
        "# /etc/default/vramblk: settings of vramblk-swap and its systemd units. See vramblk-swap(8).",
        "# Each line shows the default. To change it, remove the # and edit the value.",
        "# An empty value means the default. A variable in the environment overrides this file.",
        "# The file is read, never executed.",
    ]
    for row in script_help().settings:
        default = [f"# Default: {row.default}."] if row.default != row.value else []
        lines += ["", f"# {row.sentence}", *default, f"#{row.name}={row.value}"]
    return "\n".join(lines) + "\n"


def man_page() -> str:
    """The man page, in the man(7) macros."""
    said = script_help()
    parts = ['.TH VRAMBLK\\-SWAP 8 "" vramblk "System Administration"', f'.\\" {_NOTE}', ".nh\n.ad l", _HEAD]
    parts.append(".SH COMMANDS")
    parts += [_entry(row.name, row.sentence) for row in said.commands]
    parts.append(".SH OPTIONS")
    parts += [_entry(row.name, row.sentence) for row in said.options]
    parts.append(_ENVIRONMENT)
    parts += [_entry(row.name, f"{row.sentence}\nDefault: {row.default}.") for row in said.settings]
    parts.append('.SH "EXIT STATUS"')
    parts += [_entry(row.name, row.sentence) for row in said.statuses]
    parts.append(_TAIL)
    return "\n".join(parts) + "\n"


def page() -> str:
    """docs/reference/vramblk-swap.md."""
    said = script_help()
    options = [f"| `{row.name}` | {row.sentence} |" for row in said.options]
    commands = [f"| `{row.name}` | {row.sentence} |" for row in said.commands]
    settings = [
        f"| `{row.name}` | {row.sentence} | {f'`{row.value}`' if row.default == row.value else row.default} |"
        for row in said.settings
    ]
    statuses = [f"| {row.name} | {row.sentence} |" for row in said.statuses]
    parts = [_PAGE_HEAD, "## Commands\n\n| Command | |\n| --- | --- |", *commands]
    parts += ["\n## Options\n\n| Option | |\n| --- | --- |", *options, _PAGE_SETTINGS, *settings]
    parts += ["\n## Exit status\n\n| Code | |\n| --- | --- |", *statuses]
    parts.append(_PAGE_TAIL)
    return "\n".join(parts) + "\n"


def _entry(name: str, text: str) -> str:
    marked = re.sub("`(.*?)`", r"\\fB\1\\fR", roff(text))
    return f".TP\n.B {roff(name)}\n{marked}"


_PAGE_HEAD = """# vramblk-swap

`python -m tools.shellgen` makes this page from `vramblk-swap --help`.

`vramblk-swap` attaches each swap export of a running server to an NBD device of its own and makes the
devices swap space.
Read [Swap](../swap.md) first. The man page vramblk-swap(8) has the same tables, and examples.

    sudo host/vramblk-swap up --dry-run
    sudo host/vramblk-swap up
    sudo host/vramblk-swap status
    sudo host/vramblk-swap down

After `sudo make install-host` type `sudo vramblk-swap` instead. All commands require root, except `status`,
`yield` and any command with `--dry-run`. `auto` has no `--dry-run`.
"""
_PAGE_TAIL = """
`yield` exits with the status of its command.
[What `status` prints](../swap.md#what-status-prints) has each state."""
_PAGE_SETTINGS = """
## Settings

Set these variables in the environment, or in `/etc/default/vramblk` as lines NAME=value. A variable in the
environment overrides the file. An empty value means the default. sudo drops most variables, so write them
after it: `sudo VRAMBLK_SWAP_PRIORITY=50 host/vramblk-swap up`.

| Variable | | Default |
| --- | --- | --- |"""
_HEAD = r""".SH NAME
vramblk\-swap \- use GPU memory that vramblk serves as swap space
.SH SYNOPSIS
.B vramblk\-swap
.BR up | down | status | auto | sleep | wake
.RI [ options ]
.br
.B vramblk\-swap
.BR release | take
.IR SIZE | all
.RI [ options ]
.br
.B vramblk\-swap yield \-\-
.I COMMAND ...
.SH DESCRIPTION
.B vramblk\-swap
attaches each swap export of a running
.BR vramblk (1)
server to an NBD device of its own and makes the devices swap space, all with one priority.
The server must run in swap mode on the same machine.
.PP
.B up
writes each change to a record before it makes the change.
.B down
undoes the recorded changes from the last to the first.
An
.B up
that fails undoes its own changes.
Both are idempotent.
.PP
.BR release ,
.B take
and
.B yield
give VRAM to other programs and take it back.
If the server has several exports
.RB ( \-\-slices ),
a part can be given back.
.PP
All commands but
.B status
and
.B yield
require root, except with
.BR \-\-dry\-run .
They print each command that changes something to standard error, after a plus sign.
.SH WARNING
The pages that are swapped out exist only in the server's memory.
If the server or the GPU fails while swap is on, these pages are lost.
The kernel kills each process that needs one of them. If that process is init, the kernel panics.
Run
.B vramblk\-swap down
before you stop the server."""
_ENVIRONMENT = r""".SH ENVIRONMENT
The file
.I /etc/default/vramblk
can set the same variables.
A variable in the environment overrides the file.
An empty value means the default.
.BR sudo (8)
drops most variables.
Write them after
.BR sudo ,
as in the examples."""
_TAIL = r""".SH FILES
.TP
.I /etc/default/vramblk
Settings, one NAME=value on a line.
A value may have single or double quotes around it.
The file is read, never executed.
The systemd units use it too.
.TP
.I /run/vramblk\-swap/records
The changes that
.B up
made, for
.BR down .
.TP
.I /run/vramblk\-swap/attached
The devices that are swap, the label, UUID and export of each, the server's exports and its process.
.TP
.I /run/vramblk\-swap/asleep
Exists from
.B sleep
to
.B wake
if swap was on.
Names the exports that were swap.
.TP
.I /run/vramblk\-swap/boot
The boot to which the other files belong.
.TP
.I /run/vramblk\-swap/private/lock
Lets one
.B vramblk\-swap
run at a time.
.TP
.I /run/vramblk\-swap/private/free
The pipe through which
.B auto
gets the free memory of each GPU.
.TP
.I vramblk\-swap.service
The systemd unit that turns swap on at boot, and off before the server stops.
.TP
.I vramblk\-swap\-sleep.service
The systemd unit that turns swap off before a suspend, and on after it.
.TP
.I vramblk\-swap\-auto.service
The systemd unit that runs
.BR auto .
It is not enabled by the installation.
.SH EXAMPLES
Print what
.B up
would do:
.PP
.nf
.RS
vramblk\-swap up \-\-dry\-run
.RE
.fi
.PP
Wait for the server, then turn swap on:
.PP
.nf
.RS
sudo vramblk\-swap up \-\-wait
.RE
.fi
.PP
Turn swap on with a lower priority than other swap:
.PP
.nf
.RS
sudo VRAMBLK_SWAP_PRIORITY=50 vramblk\-swap up
.RE
.fi
.PP
Show how much swap is used, and the server's state, as JSON:
.PP
.nf
.RS
sudo vramblk\-swap status \-\-json
.RE
.fi
.PP
Give all VRAM to a command, here for a minute, and take it back when it ends:
.PP
.nf
.RS
vramblk\-swap yield \-\- sleep 60
.RE
.fi
.PP
Turn swap off, however long it takes:
.PP
.nf
.RS
sudo vramblk\-swap down \-\-wait
.RE
.fi
.SH "SEE ALSO"
.BR vramblk (1),
.BR nbd\-client (8),
.BR swapon (8),
.BR proc (5)"""
