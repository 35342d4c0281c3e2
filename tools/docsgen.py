"""``python -m tools.docsgen [--check]``: the pages that are made from the tables of options and variables.

Writes docs/reference/options.md, .env.example, and the table between the markers of README.md, below the
current directory. With ``--check`` writes nothing and exits 1 if one of them is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools import generated
from tools.variables import FOREIGN_VARIABLES
from vramblk.config.options import BY_ENTRY_KEY, GROUPS, MAXIMUM_EXPORTS, OPTIONS, Option

BEGIN = "<!-- options: made by `python -m tools.docsgen` -->"
END = "<!-- end of options -->"


def main(arguments: list[str], root: Path = Path()) -> int:
    """Write the pages below ``root``, or with ``--check`` only compare."""
    return generated.main("python -m tools.docsgen", arguments, lambda: _pages(root))


def _pages(root: Path) -> dict[Path, str]:
    pages = {root / "docs" / "reference" / "options.md": options_page(), root / ".env.example": env_example()}
    readme = root / "README.md"
    if readme.exists():
        pages[readme] = with_table(readme.read_text())
    return pages


def option_table() -> str:
    """One row for each option, for the README."""
    rows = ["| Option | Variable | Default | |", "| --- | --- | --- | --- |"]
    rows += [f"| {_flags(o)} | `{o.environment}` | {_default(o)} | {_cell(o.help)} |" for o in OPTIONS]
    return "\n".join(rows)


def with_table(readme: str) -> str:
    """The README with a fresh table between its markers; without markers as it is."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    return f"{head}{begin}\n{option_table()}\n{end}{tail}" if begin and end else readme


def options_page() -> str:
    """docs/reference/options.md."""
    parts = [_HEAD]
    for group in GROUPS:
        parts.append(f"## {group}\n")
        parts += [_section(option) for option in OPTIONS if option.group == group]
    parts.append(_EXPORTS.format(most=MAXIMUM_EXPORTS, keys=", ".join(f"`{key}`" for key in BY_ENTRY_KEY)))
    rows = [f"| `{v.name}` | {v.user} | {v.default or 'none'} | {_cell(v.help)} |" for v in FOREIGN_VARIABLES]
    parts.append("\n".join([_FOREIGN, *rows, ""]))
    return "\n".join(parts)


def env_example() -> str:
    """.env.example: every variable, commented out, with its default."""
    lines = [
        "# Copy to .env and uncomment what you need. docker compose reads it, and so do make up, make down,",
        "# make logs and make status; make run and a vramblk started by hand do not.",
        "# An empty value counts as unset, but for the token and for TLS it is an error: they would be off.",
        "# VRAMBLK_X_FILE=/path takes the value of VRAMBLK_X from a file, for every option below whose value",
        "# is not a path itself.",
    ]
    for group in GROUPS:
        lines += ["", f"# --- {group}"]
        for option in OPTIONS:
            if option.group == group:
                lines += [f"# {option.help}", f"# Allowed: {option.allowed}"]
                lines += [f"# Default: {option.default_note}"] if option.default_note else []
                lines += [f"#{option.environment}={option.default or ''}"]
    for user in dict.fromkeys(variable.user for variable in FOREIGN_VARIABLES):
        lines += ["", f"# --- Read by: {user}"]
        for variable in FOREIGN_VARIABLES:
            if variable.user == user:
                lines += [f"# {variable.help}", f"#{variable.name}={variable.default}"]
    return "\n".join(lines) + "\n"


def _section(option: Option) -> str:
    argument = "" if option.boolean else f" {option.metavar}"
    twin = f"; `--no-{option.flag[2:]}` turns it off" if option.boolean else ""
    key = f"`{option.name}`"
    if option.repeatable:
        key += ", a list"
    elif option.per_export:
        key += f", in an entry of `exports` `{option.entry_key}`"
    file_twin = "" if option.path else f", or a file with the value: `{option.file_variable}`"
    separated = ", comma-separated" if option.repeatable else ""
    return (
        f"### {_flags(option, argument)}\n\n{option.help}\n\n"
        f"- Allowed: {option.allowed}{twin}\n- Default: {_default(option)}\n"
        f"- Variable: `{option.environment}`{separated}{file_twin}\n- YAML key: {key}\n"
    )


def _flags(option: Option, argument: str = "") -> str:
    names = [option.short, option.flag] if option.short else [option.flag]
    return ", ".join(f"`{name}{argument}`" for name in names)


def _default(option: Option) -> str:
    return option.default_note or (f"`{option.default}`" if option.default else "none")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_HEAD = """# Options

`python -m tools.docsgen` makes this page from the table in `vramblk/config/options.py`.

Each option is a flag, an environment variable and a key of the YAML file that `--config` names.

- A flag overrides a variable. A variable overrides the file. The file overrides the default.
- `vramblk check` prints every value with its source.
- Every value is checked, also one that another source overrides. An error names the setting, its source, the
  value and what is allowed. The exit code is 2.
- An empty variable counts as unset. For the metrics token and the options of TLS it is an error, so that no
  protection is off by mistake.
- Keys of the file may have hyphens instead of underscores.
- Flags come after the subcommand: `vramblk check --size 64M`.
- `VRAMBLK_X_FILE=/path` takes the value of `VRAMBLK_X` from a file, as secrets are mounted. Newlines at the
  end are dropped. A file is an error if it is empty or unreadable, or has Windows line ends or a byte-order
  mark.
"""

_EXPORTS = """## Several exports

The YAML key `exports` is a list.

```yaml
listen_addr: ["127.0.0.1:10809", "unix:/run/vramblk/nbd.sock"]
exports:
  - {{name: fast, size: 4G, device: 0}}
  - {{name: big, size: 50%, device: 1, read_only: no}}
```

An entry can have {keys}.

- A missing key is taken from the top level of the file (`max_connections` from
  `export_max_connections`), then from the default.
- A flag or variable overrides the entries, as it overrides everything in the file. The event
  `exports_overridden` and `vramblk check` warn of it.
- One export in mode swap makes the whole server a swap server.
- Two exports with the same name are an error.
- With all slices, there can be {most} exports.

## Slices

`--slices N` serves N exports of equal size instead of one. Their names are the export's name, a hyphen and a
number from 0: `--slices 4` serves `vram-0`, `vram-1`, `vram-2` and `vram-3`. With one slice, the default, the
name stays `vram`. The names are the same at each start.

    vramblk --size 8G --slices 4 --listen-addr unix:/run/vramblk/nbd.sock
    nbd-client -unix /run/vramblk/nbd.sock /dev/nbd2 -N vram-2

- The slices together have `--size`: here each has 2 GiB. A share is rounded to 4 KiB.
- `%` and `max` are divided too: with `--size max --slices 4` each slice is a quarter of the free memory.
- The slices of a `map:` device lie one after the other in it.
- Clients that request the empty name get the first slice.

## When memory is held

`--allocate attach` holds an export's memory only while a client is attached. It is the default in swap mode.
`--allocate start`, the default in scratch mode, holds it from start to stop.

    vramblk --allocate attach --size 8G --slices 4

1. At start the server allocates and proves each export once, so it refuses a size that does not fit. It frees
   the memory before `ready`.
2. When the first client requests the export (GO, EXPORT_NAME), the server allocates, zeroes and proves it
   again. Then it answers the client. LIST and INFO allocate nothing.
3. When the last client has disconnected, the server zeroes and frees the memory. **Its contents are lost.**

- If there is not enough memory, the client gets an error with the amount that is missing and the device.
  Other exports continue. The connection can request another export.
- A client that attaches before the server has seen the last one disconnect finds the old data.
- A `map:` device keeps its memory. The server zeroes it, and does not prove it again. A file on tmpfs or
  hugetlbfs gives its pages back.
- The engine keeps the runtime's own memory on the GPU, and a staging buffer as large as all its windows.
- `vramblk status`, the page, `vramblk top` and `vramblk_export_held` show which exports hold memory.
- The engine serves a local client of such an export to its end. It does not pass it on to a worker.

## All GPUs

`--device all` serves the same export on each GPU that `vramblk devices` shows, or on each GPU of
`--platform N`. The names are the export's name, `-gpu` and a number from 0, in the order of
`vramblk devices`, also on a machine with one GPU. With slices they are `vram-gpu0-0`, `vram-gpu0-1`,
`vram-gpu1-0` and so on.

    vramblk --device all --size 50% --slices 4

- `--size` applies to each GPU, also with `%` and `max`: here half of each.
- A GPU that two runtimes offer counts once, for the first of them.
- A GPU that cannot be used is an error (exit code 78). List the others in a YAML file then.
- Without any GPU, `--allow-cpu` serves each CPU device: `vram-cpu0`.
- To give GPUs different sizes or names, list them under `exports`.
- The second GPU's copies are slower on NVIDIA (event `unpinned`): its driver pins memory for one device only.
"""

_FOREIGN = """## Other variables

These are not options of the server. The server reports any other `VRAMBLK_` variable, with the nearest known
name (event `unknown_variable`).

| Variable | Read by | Default | |
| --- | --- | --- | --- |"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
