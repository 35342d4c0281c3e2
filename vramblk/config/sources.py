"""Values of the options from each source, each parsed where it is read: errors name the source."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ConfigError
from .options import (
    BY_ENTRY_KEY,
    BY_NAME,
    EXPORTS_HELP,
    EXPORTS_KEY,
    GROUPS,
    OPTIONS,
    Option,
)
from .valuefile import read_value

if TYPE_CHECKING:
    import yaml

_SHOWN_CHARACTERS = 200

#: From 0, nothing in common, to 1; a slip of the fingers has more.
_NEAR = 0.75


@dataclass(frozen=True)
class Given:
    """One value of an option as some source gives it; several texts only if it is repeatable.

    Attributes:
        source: "flag --size", "environment VRAMBLK_SIZE" or "FILE.yaml key size".
        value: parsed, a tuple for a repeatable option.
    """

    option: Option
    source: str
    texts: tuple[str, ...]
    value: Any

    @classmethod
    def parsed(cls, option: Option, source: str, texts: Sequence[str]) -> Given:
        """What a source gives, checked.

        Raises:
            ConfigError: setting, source, value and what is allowed, in one line.
        """
        values = []
        for text in texts:
            try:
                values.append(option.parse(text))
            except ValueError as error:
                raise _refusal(option, source, text, str(error)) from None
        return cls(option, source, tuple(texts), tuple(values) if option.repeatable else values[-1])

    def refuse(self, reason: str, allowed: str = "") -> ConfigError:
        """The error for a value that is sound by itself, but not beside others."""
        return _refusal(self.option, self.source, self.texts[-1], reason, allowed)

    @property
    def shown(self) -> str:
        return "(hidden)" if self.option.secret else ", ".join(self.texts)


def _refusal(option: Option, source: str, text: str, reason: str, allowed: str = "") -> ConfigError:
    shown = "(hidden)" if option.secret and text else quote(text)
    return ConfigError(f"{option.name} = {shown} ({source}): {reason}; allowed: {allowed or option.allowed}")


@dataclass(frozen=True)
class ConfigFile:
    """What a YAML file gives: options of the server, and the entries of ``exports`` by option name."""

    path: str
    given: dict[str, Given]
    exports: Sequence[dict[str, Given]] | None


def quote(text: str) -> str:
    """The text on one line, with quotes, not longer than a line should be."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The known name that was probably meant; empty if none is near.

    Args:
        prefix: common to all names, and so no sign of likeness.
    """
    bare = [known.removeprefix(prefix) for known in names]
    found = difflib.get_close_matches(name.removeprefix(prefix), bare, n=1, cutoff=_NEAR)
    return prefix + found[0] if found else ""


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are a ConfigError instead of two lines and an exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(message.split())}; {self.prog} --help lists what is allowed")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse every argument; an unknown flag is named with the nearest known one."""
        namespace, unknown = self.parse_known_args(list(argv))
        for argument in unknown:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and len(flag) > 2:
                known = [name for name in self._option_string_actions if name.startswith("--")]
                near = nearest(flag, known, "--")
                hint = f"the nearest is {near}, " if near else ""
                raise ConfigError(f"unknown flag {quote(flag)}; {hint}{self.prog} --help lists all")
            raise ConfigError(
                f"unexpected argument {quote(argument)}; the subcommand comes first, "
                f"{self.prog} --help lists what is allowed"
            )
        return namespace


def add_flags(parser: argparse.ArgumentParser, shown: Iterable[str] | None = None) -> None:
    """Add every option; ``--help`` lists those named in ``shown``, all by default."""
    visible = set(BY_NAME if shown is None else shown)
    for group in GROUPS:
        members = [option for option in OPTIONS if option.group == group]
        listed = any(option.name in visible for option in members)
        target = parser.add_argument_group(group) if listed else parser
        for option in members:
            text = _help(option) if option.name in visible else argparse.SUPPRESS
            names = [option.short, option.flag] if option.short else [option.flag]
            if option.boolean:
                target.add_argument(*names, dest=option.name, action="append_const", const="on", help=text)
                target.add_argument(
                    "--no-" + option.flag[2:], dest=option.name, action="append_const", const="off",
                    help=argparse.SUPPRESS,
                )  # fmt: skip
            else:
                target.add_argument(
                    *names, dest=option.name, action="append", metavar=option.metavar, help=text
                )


def _help(option: Option) -> str:
    text = f"{option.help} [{option.environment}; default: {option.default_text}]"
    return text.replace("%", "%%")


def from_flags(namespace: argparse.Namespace) -> dict[str, Given]:
    """What the flags give; of one given twice without being repeatable both are checked, the last counts."""
    found = {}
    for option in OPTIONS:
        if texts := getattr(namespace, option.name):
            found[option.name] = Given.parsed(option, f"flag {option.flag}", texts)
    return found


def from_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    """What the environment gives; an empty variable is unset, unless that would turn a protection off.

    Raises:
        ConfigError: VRAMBLK_X_FILE names a file that gives no value, or stands where it may not; or a
            protection is given, but empty.
    """
    found = {}
    for option in OPTIONS:
        name, text = option.environment, environ.get(option.environment)
        source = f"environment {name}"
        if path := environ.get(option.file_variable):
            given = f"{option.file_variable}={path}"
            if option.path:
                raise ConfigError(f"{given}: {name} holds a path itself; set {name}={path}")
            if text:
                raise ConfigError(f"{given}: {name} is set too; keep one of them")
            text = read_value(option.file_variable, path)
            source = f"environment {option.file_variable}, file {path}"
        if text:
            found[option.name] = Given.parsed(option, source, _split(option, text))
        elif option.protects:
            for name in (option.environment, option.file_variable):
                if name in environ:
                    reason, allowed = "empty, which would turn it off", f"{option.allowed}, or unset {name}"
                    raise _refusal(option, f"environment {name}", "", reason, allowed)
    return found


def from_file(path: str) -> ConfigFile:
    """What a YAML file gives.

    Scalars are taken as written: YAML 1.1 would make ``off`` a boolean, and of a PCI address a number.

    Raises:
        ConfigError: unreadable, not YAML, an unknown key or a value of the wrong shape.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"config {quote(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {quote(path)}: not UTF-8 at byte {error.start}") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"config {path}{where}: not YAML: {' '.join(problem.split())}") from None
    given: dict[str, Given] = {}
    exports = None
    if root is None:
        return ConfigFile(path, given, exports)
    for key, node in _pairs(root, path, "", [*BY_NAME, EXPORTS_KEY]):
        if key == EXPORTS_KEY:
            exports = _exports(node, path)
        elif key == "config":
            raise ConfigError(
                f"config ({path} key config): a file cannot name another one; "
                "allowed: flag --config or environment VRAMBLK_CONFIG"
            )
        else:
            given[key] = _from_node(BY_NAME[key], node, path, key)
    return ConfigFile(path, given, exports)


def _exports(node: yaml.Node, path: str) -> list[dict[str, Given]]:
    import yaml

    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise ConfigError(f"exports ({path} key exports): not a list; allowed: {EXPORTS_HELP}")
    entries = []
    for index, item in enumerate(node.value):
        place = f"exports[{index}]"
        entry = {}
        for key, value in _pairs(item, path, place, list(BY_ENTRY_KEY)):
            option = BY_ENTRY_KEY[key]
            entry[option.name] = _from_node(option, value, path, f"{place}.{key}")
        entries.append(entry)
    return entries


def _pairs(node: yaml.Node, path: str, place: str, known: Sequence[str]) -> list[tuple[str, yaml.Node]]:
    """Keys, with underscores, and values of a mapping."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        where = f"{path} line {node.start_mark.line + 1}"
        raise ConfigError(f"config {where}: {place or 'the file'} is not a mapping of options to values")
    pairs: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        line = f"{place} of {path}".removeprefix(" of ") + f" line {key_node.start_mark.line + 1}"
        key = str(key_node.value).replace("-", "_") if isinstance(key_node, yaml.ScalarNode) else ""
        if key not in known:
            written = quote(key_node.value if key else "?")
            near = nearest(key, known)
            hint = f"the nearest is {near}; " if near else ""
            raise ConfigError(f"unknown key {written} in {line}; {hint}allowed: {', '.join(known)}")
        if key in pairs:
            raise ConfigError(f"key {key} occurs twice in {line}; allowed: once")
        pairs[key] = value
    return list(pairs.items())


def _from_node(option: Option, node: yaml.Node, path: str, key: str) -> Given:
    import yaml

    items = node.value if option.repeatable and isinstance(node, yaml.SequenceNode) else [node]
    if not items or not all(isinstance(item, yaml.ScalarNode) for item in items):
        shape = "a list of values" if option.repeatable else "a single value"
        raise ConfigError(f"{option.name} ({path} key {key}): not {shape}; allowed: {option.allowed}")
    alone = len(items) == 1 and items[0] is node
    texts = _split(option, node.value) if alone else tuple(item.value for item in items)
    return Given.parsed(option, f"{path} key {key}", texts)


def _split(option: Option, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if option.repeatable else (text,)
