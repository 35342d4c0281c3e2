"""``python -m tools.shellgen [--check]``: shell completions and man page, from the table of options.

Writes below share/ of the current directory, laid out as it is to be installed below a prefix. It also writes
what ``tools.hostpages`` makes for vramblk-swap and what ``tools.upnames`` makes for `make up`.
With ``--check`` writes nothing and exits 1 if one of the files is not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools import generated, hostpages, upnames
from tools.generated import roff
from vramblk.cli import COMMANDS, SERVE, make_parser
from vramblk.config.options import BY_NAME, GROUPS, OPTIONS, Option

BASH = "share/bash-completion/completions/vramblk"
ZSH = "share/zsh/site-functions/_vramblk"
FISH = "share/fish/vendor_completions.d/vramblk.fish"
MAN = "share/man/man1/vramblk.1"

_NOTE = "Made by python -m tools.shellgen from the table of options."


@dataclass(frozen=True)
class OwnArgument:
    """What subcommands take that is no setting.

    Attributes:
        name: the flag, or for a positional argument what stands for it.
        value: what stands for a flag's value, empty if none follows.
    """

    name: str
    help: str
    value: str
    commands: tuple[str, ...]

    @property
    def is_flag(self) -> bool:
        return self.name.startswith("-")


@cache
def own_arguments() -> tuple[OwnArgument, ...]:
    """From the parsers of all subcommands, so that none is forgotten."""
    settings = {flag for option in OPTIONS for flag in (option.flag, f"--no-{option.flag[2:]}")}
    found: dict[tuple[str, str, str], list[str]] = {}
    for command in COMMANDS:
        for action in make_parser(command)._actions:
            name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
            if name in settings or not action.help or action.help == argparse.SUPPRESS:
                continue
            value = (
                str(action.metavar or action.dest.upper())
                if action.option_strings and action.nargs != 0
                else ""
            )
            found.setdefault((name, _sentence(action.help), value), []).append(command)
    return tuple(OwnArgument(*key, tuple(commands)) for key, commands in found.items())


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(("]", ".")) else ".")


def main(arguments: list[str], root: Path = Path()) -> int:
    """Write the files below ``root``, or with ``--check`` only compare."""
    return generated.main("python -m tools.shellgen", arguments, lambda: _files(root))


def _files(root: Path) -> dict[Path, str]:
    return {
        root / BASH: bash(),
        root / ZSH: zsh(),
        root / FISH: fish(),
        root / MAN: man_page(),
        root / hostpages.MAN: hostpages.man_page(),
        root / hostpages.EXAMPLE: hostpages.example(),
        root / hostpages.PAGE: hostpages.page(),
        root / hostpages.NAMES: hostpages.names(),
        root / upnames.NAMES: upnames.names(root),
    }


def choices(option: Option) -> list[str]:
    """The words that an option takes, where it takes only a few."""
    words = re.split(r", | or ", option.allowed)
    if not all(re.fullmatch(r"[a-z]+", word) for word in words):
        return []
    try:
        for word in words:
            option.parse(word)
    except ValueError:
        return []
    return words


def flags(command: str) -> Iterator[tuple[str, str, Option | None, bool]]:
    """(flag, help, option or None, whether a value follows) of a subcommand, those of its help first."""
    for name in COMMANDS[command].options:
        option = BY_NAME[name]
        yield option.flag, option.help, option, not option.boolean
        if option.boolean:
            yield f"--no-{option.flag[2:]}", f"Not: {option.help}", option, False
    for own in own_arguments():
        if command in own.commands and own.is_flag:
            yield own.name, own.help, None, bool(own.value)


def bash() -> str:
    """Completion for bash: subcommands, flags, choices and paths."""
    lines = [f"# bash completion for vramblk. {_NOTE}"]
    lines += [
        "_vramblk_words() {",
        '    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")',
        "}",
        "_vramblk() {",
    ]
    lines += [
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command=serve flags',
        '    [[ $COMP_CWORD -gt 1 && ${COMP_WORDS[1]} != -* ]] && command="${COMP_WORDS[1]}"',
        '    case "$before" in',
    ]
    for option in OPTIONS:
        names = "|".join(filter(None, (option.short, option.flag)))
        if words := choices(option):
            lines.append(f'        {names}) _vramblk_words "{" ".join(words)}" "$word"; return ;;')
        elif option.path:
            lines.append(f'        {names}) mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;')
        elif not option.boolean:
            lines.append(f"        {names}) return ;;")
    values = "|".join(own.name for own in own_arguments() if own.value)
    lines += [f"        {values}) return ;;", "    esac", '    case "$command" in']
    for command in COMMANDS:
        lines.append(f'        {command}) flags="{" ".join(flag for flag, *_ in flags(command))}" ;;')
    lines += [
        "    esac",
        f'    [[ $COMP_CWORD -eq 1 ]] && flags+=" {" ".join(COMMANDS)}"',
        '    _vramblk_words "$flags" "$word"',
        "}",
        "complete -o filenames -F _vramblk vramblk",
    ]
    return "\n".join(lines) + "\n"


def zsh() -> str:
    """Completion for zsh, with the help of each option."""
    lines = ["#compdef vramblk", f"# {_NOTE}", "local -a commands specs", "commands=("]
    lines += [f"    {_quote(f'{name}:{command.help}')}" for name, command in COMMANDS.items()]
    lines += [
        ")",
        f"local command={SERVE}",
        "[[ CURRENT -gt 2 && $words[2] != -* ]] && command=$words[2]",
        "case $command in",
    ]
    for command in COMMANDS:
        specs = [_quote(_zsh_spec(*each)) for each in flags(command)]
        lines += [f"    {command}) specs=(", *(f"        {spec}" for spec in specs), "    ) ;;"]
    lines += [
        "esac",
        "if [[ CURRENT -eq 2 && $words[2] != -* ]]; then _describe subcommand commands; fi",
        "if [[ $command == $words[2] ]]; then shift words; (( CURRENT-- )); fi",
        "_arguments $specs",
    ]
    return "\n".join(lines) + "\n"


def _zsh_spec(flag: str, text: str, option: Option | None, value: bool) -> str:
    described = re.sub(r"([\[\]:\\])", r"\\\1", text)
    spec = f"{'*' if option is not None and option.repeatable else ''}{flag}[{described}]"
    if not value:
        return spec
    if option is None:
        return f"{spec}:N:"
    action = f"({' '.join(choices(option))})" if choices(option) else "_files" if option.path else ""
    return f"{spec}:{option.metavar or option.name}:{action}".replace("HOST:PORT", r"HOST\:PORT")


def fish() -> str:
    """Completion for fish, with the help of each option."""
    lines = [f"# fish completion for vramblk. {_NOTE}", "complete -c vramblk -f"]
    for name, each in COMMANDS.items():
        lines.append(f"complete -c vramblk -n __fish_use_subcommand -a {name} -d {_quote(each.help)}")
    others = " ".join(name for name in COMMANDS if name != SERVE)
    for command in COMMANDS:
        seen = (
            f"not __fish_seen_subcommand_from {others}"
            if command == SERVE
            else f"__fish_seen_subcommand_from {command}"
        )
        for flag, text, option, value in flags(command):
            parts = [f"complete -c vramblk -n {_quote(seen)} -l {flag[2:]}"]
            if option is not None and option.short and flag == option.flag:
                parts.append(f"-s {option.short[1:]}")
            if value:
                words = choices(option) if option is not None else []
                parts.append(
                    f"-x -a {_quote(' '.join(words))}"
                    if words
                    else "-r -F"
                    if option is not None and option.path
                    else "-x"
                )
            parts.append(f"-d {_quote(text)}")
            lines.append(" ".join(parts))
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """A word for a shell; fish and the POSIX shells agree on this form."""
    return "'" + text.replace("\\", "\\\\").replace("'", "’") + "'"


def man_page() -> str:
    """The man page, in the man(7) macros."""
    parts = ['.TH VRAMBLK 1 "" vramblk "User Commands"', f'.\\" {_NOTE}', _MAN_FORM, _MAN_HEAD]
    parts.append(".SH SUBCOMMANDS")
    parts += [f".TP\n.B {name}\n{roff(command.help)}." for name, command in COMMANDS.items()]
    parts.append(
        ".SH OPTIONS\nEvery option has an environment variable and a YAML key."
        " A flag overrides a variable. A variable overrides the file."
    )
    for group in GROUPS:
        parts.append(f'.SS "{roff(group)}"')
        parts += [_man_option(option) for option in OPTIONS if option.group == group]
    parts.append('.SS "Options of subcommands"')
    for own in own_arguments():
        where = "" if len(own.commands) == len(COMMANDS) else f" ({', '.join(own.commands)})"
        names = f"{own.name} {own.value}".strip()
        parts.append(f".TP\n.B {roff(names)}\n{roff(own.help + where)}")
    parts.append(_MAN_TAIL)
    return "\n".join(parts) + "\n"


def _man_option(option: Option) -> str:
    names = ", ".join(filter(None, (option.short, option.flag)))
    value = "" if option.boolean else f" {option.metavar}"
    text = option.help.removesuffix(" May be repeated.")
    if option.repeatable:
        text += " May be repeated; in the variable separated by commas."
    facts = f"Allowed: {option.allowed}. Default: {option.default_text}. Variable: {option.environment}."
    return f".TP\n.B {roff(names + value)}\n{roff(text)}\n{roff(facts)}"


#: Names of variables, files and options are not to be hyphenated.
_MAN_FORM = ".nh\n.ad l"
_MAN_HEAD = r""".SH NAME
vramblk \- serve GPU memory as an NBD block device
.SH SYNOPSIS
.B vramblk
.RI [ subcommand ]
.RI [ options ]
.SH DESCRIPTION
vramblk serves the memory of a GPU over the Network Block Device protocol, as a scratch disk or as swap space.
It allocates, zeroes and proves all memory before it serves clients.
Without a subcommand it runs
.BR serve .
.PP
The content of an export is lost when the server stops.
On TCP, everybody who reaches the port can read and write the exports, unless TLS with client certificates
or keys is required."""
_MAN_TAIL = r""".SH "EXIT STATUS"
.TP
.B 0
The server stopped in order, or the result is good.
.TP
.B 1
A failure at run time: an address is in use, a socket path cannot be used, the engine has ended, or a server
does not answer.
.TP
.B 2
A bad value. The line on stderr names the setting, its source, the value and what is allowed.
.TP
.B 78
This machine lacks a device, a permission or a capability. The line on stderr has the remedy.
.SH FILES
.TP
.I /run/vramblk/nbd.sock
Usual Unix socket of the server.
.TP
.I /run/vramblk/status.sock
Status socket of a server that runs as root; otherwise
.IR $XDG_RUNTIME_DIR/vramblk\-status.sock .
.SH SIGNALS
.TP
.B SIGTERM, SIGINT
Accept no new clients, and end when the last client has disconnected. In scratch mode the server ends at the
latest after
.BR \-\-drain\-timeout .
.TP
.B SIGHUP
Read the TLS files again, for new connections.
.TP
.B SIGQUIT
End at once. Never use it under live swap.
.SH EXAMPLES
Show the GPUs, and what this machine lacks:
.PP
.nf
.RS
vramblk devices
vramblk check
.RE
.fi
.PP
Serve 8 GiB of VRAM on a Unix socket:
.PP
.nf
.RS
sudo vramblk \-\-size 8G \-\-listen\-addr unix:/run/vramblk/nbd.sock
.RE
.fi
.PP
Make it a disk:
.PP
.nf
.RS
sudo nbd\-client \-unix /run/vramblk/nbd.sock /dev/nbd0 \-N vram \-b 4096
sudo mkfs.ext4 /dev/nbd0
.RE
.fi
.PP
Serve it as swap space, and turn swap on:
.PP
.nf
.RS
sudo vramblk \-\-mode swap \-\-size 8G \-\-listen\-addr unix:/run/vramblk/nbd.sock
sudo vramblk\-swap up
.RE
.fi
.SH "SEE ALSO"
.BR nbd\-client (8),
.BR nbdcopy (1),
.BR swapon (8),
.BR vramblk\-swap (8)"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
