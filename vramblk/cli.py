"""The command line: one table of subcommands, one place where a failure becomes a line and an exit status.

Everything heavy is imported by the subcommand that needs it, since the process that starts here
becomes the supervisor and must never load OpenCL.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import __version__
from .config import sources
from .config.options import OPTIONS
from .config.settings import Settings, resolve
from .config.units import printable
from .errors import ConfigError, StartupError

SERVE = "serve"

_INTERRUPTED = 130
#: Words of other programs.
_MEANT = {"run": SERVE, "start": SERVE, "stop": "", "list": "devices"}
_ALL = tuple(option.name for option in OPTIONS)
_DEVICE = ("size", "device", "platform", "allow_cpu", "map_overwrite", "config", "verbose")
_CLIENT = ("status_socket", "metrics_addr", "metrics_token", "config")
_RELAY = (*_CLIENT, "metrics_host")


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        run: called with the settings and the parsed arguments; gives the exit status.
        options: those that ``--help`` lists; every subcommand takes all of them.
        json: whether it prints a result and so takes ``--json``.
    """

    help: str
    run: Callable[[Settings, argparse.Namespace], int]
    options: tuple[str, ...] = _ALL
    json: bool = True
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one subcommand; the exit status is the contract's."""
    _prepare_stdio()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments, os.environ if environ is None else environ)
    except StartupError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it flushes at exit
        return StartupError.exit_code
    except (OSError, MemoryError, ImportError) as error:
        return _fail(f"{type(error).__name__}: {error}", StartupError.exit_code)


def _prepare_stdio() -> None:
    """Open on /dev/null what is closed, and let output replace what the terminal's encoding cannot show.

    A number that is left free would go to the next socket or pipe, and what is printed would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python leaves None in the place of what was closed, and print(file=None) means stdout.
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _fail(message: str, status: int) -> int:
    print(f"vramblk: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


def _run(arguments: list[str], environ: Mapping[str, str]) -> int:
    name, explicit = SERVE, bool(arguments) and not arguments[0].startswith("-")
    if explicit:
        name = arguments.pop(0)
    if name in ("help", "version"):
        arguments, name, explicit = _as_flag(name, arguments)
    if name not in COMMANDS:
        near = _MEANT.get(name, sources.nearest(name, COMMANDS))
        hint = f"the nearest is {near}, " if near else ""
        raise ConfigError(
            f"unknown subcommand {sources.quote(name)}; {hint}allowed: {', '.join(COMMANDS)}, help, version"
        )
    namespace = make_parser(name, explicit=explicit).parse_all(arguments)
    if name == SERVE and namespace.list_devices:
        name = "devices"
    elif name == SERVE and namespace.json:
        raise ConfigError(
            "--json belongs to --list-devices and the subcommands; logs are JSON unless stdout is a terminal"
        )
    settings = resolve(namespace, environ)
    from .system import logs

    if name == SERVE:
        logs.configure_direct("supervisor", settings.verbose)
        for variable, near in settings.unknown_variables:
            logs.get().warning("unknown_variable", name=variable, **({"nearest": near} if near else {}))
        for each in settings.overrides:
            logs.get().warning(
                "exports_overridden",
                name=each.name,
                value=each.value,
                source=each.source,
                exports=list(each.exports),
            )
        for export in settings.exports:
            if asked := export.size.rounded_from:
                size_bytes = int(export.size.amount)
                logs.get().info("size_rounded", export=export.name, asked_bytes=asked, size_bytes=size_bytes)
    else:
        logs.configure_direct(name, settings.verbose, json=False, fd=2)
    return COMMANDS[name].run(settings, namespace)


def _as_flag(word: str, rest: list[str]) -> tuple[list[str], str, bool]:
    """``help``, ``help status`` and ``version`` as the corresponding flags."""
    if word == "help" and rest:
        return ["--help", *rest[1:]], rest[0], True
    return [f"--{word}", *rest], SERVE, False


def make_parser(name: str, *, explicit: bool = True) -> sources.OneLineParser:
    """The parser of one subcommand; the help of the implicit ``serve`` is that of the program."""
    command = COMMANDS[name]
    listing = "\n".join(f"  {other:<10}{each.help}" for other, each in COMMANDS.items())
    parser = sources.OneLineParser(
        prog=f"vramblk {name}" if explicit else "vramblk",
        usage=f"vramblk {name} [options]" if explicit else "vramblk [subcommand] [options]",
        description=command.help if explicit else "Serve GPU memory as an NBD block device.",
        epilog=None if explicit else f"subcommands (the first word; {SERVE} if there is none):\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-V",
        "--version",
        action="version",
        version=f"vramblk {__version__}",
        help="show the version and exit",
    )
    if name == SERVE:
        parser.add_argument("--list-devices", action="store_true", help="the same as the subcommand devices")
    if command.json or name == SERVE:
        text = "print the result as JSON" if command.json else argparse.SUPPRESS
        parser.add_argument("--json", action="store_true", help=text)
    if command.add_arguments:
        command.add_arguments(parser)
    sources.add_flags(parser, command.options)
    return parser


def _serve(settings: Settings, _: argparse.Namespace) -> int:
    if settings.mode == "swap" and os.getpid() == 1:
        from .supervisor.processone import run_as_init

        run_as_init()
    from .supervisor.process import serve

    return serve(settings)


def _devices(_: Settings, arguments: argparse.Namespace) -> int:
    from .commands.devices import print_devices

    return print_devices(arguments.json)


def _check(settings: Settings, arguments: argparse.Namespace) -> int:
    from .commands.check import run

    return run(settings, arguments.json)


def _status(settings: Settings, arguments: argparse.Namespace) -> int:
    from .commands.status import status

    return status(settings, arguments.json, arguments.health, arguments.env)


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--health", action="store_true", help="one line, exit 0 if the server is healthy")
    parser.add_argument("--env", action="store_true", help="NAME=value lines for a script")


def _top(settings: Settings, _: argparse.Namespace) -> int:
    from .commands.top import top

    return top(settings)


def _relay(settings: Settings, _: argparse.Namespace) -> int:
    from .commands.relay import run

    return run(settings)


def _selftest(settings: Settings, arguments: argparse.Namespace) -> int:
    from .commands.selftest import run

    return run(settings, arguments.passes, arguments.json)


def _add_selftest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passes", type=_passes, default=1, metavar="N", help="how often to run all patterns [default: 1]"
    )


def _passes(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{sources.quote(text)} is not a whole number from 1 to 1000000")
    return int(text)


def _bench(settings: Settings, arguments: argparse.Namespace) -> int:
    from .commands.bench import run

    return run(settings, arguments)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from .commands.bench import add_arguments

    add_arguments(parser)


COMMANDS: dict[str, Command] = {
    SERVE: Command("serve until a signal stops the server", _serve, json=False),
    "devices": Command("list OpenCL platforms and devices", _devices, ("config", "verbose")),
    "check": Command("print every setting with its source, and what this machine lacks", _check),
    "status": Command("print the status of a running server", _status, _CLIENT, add_arguments=_add_status),
    "top": Command("show the status of a running server, live in a terminal", _top, _CLIENT, json=False),
    "relay": Command(
        "serve metrics and status page over TCP, from a server's status socket", _relay, _RELAY, json=False
    ),
    "bench": Command(
        "measure the speed of a running server",
        _bench,
        ("listen_addr", "export_name", "tls", "tls_certificates", *_DEVICE),
        add_arguments=_add_bench,
    ),
    "selftest": Command("test the memory of a device", _selftest, _DEVICE, add_arguments=_add_selftest),
}
