"""From a YAML file and dotted overrides to checked values: strict reading, near matches for unknown keys, types."""

from __future__ import annotations

import copy
import enum
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

Values = dict[str, Any]
Help = Callable[[str], str]

_FLOAT = r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
_SCALARS = (  # the core schema of YAML 1.2: 1e-3 is a number, `yes` and 2024-01-01 are text
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", rf"{_FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+0123456789."),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """Reads YAML by the core schema of YAML 1.2 and refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(
                    f"{self.name}: line {key_node.start_mark.line + 1}: a key must be text, found a {key_node.id}; "
                    "text that opens with a brace or a bracket needs quotes"
                )
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in seen and key != "<<":
                raise ValueError(
                    f"{self.name}: key {key!r} stands twice in one mapping, in lines {seen[key]} and {line}"
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}  # not those of YAML 1.1


class _Dumper(yaml.SafeDumper):
    """Writes YAML that versions 1.1 and 1.2 read alike: text that either takes for something else is quoted."""


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _characters = [*_first, ""] if _tag == "null" else list(_first)
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _characters)


def parse_yaml(text: str, name: str) -> Any:
    """Returns the value of a YAML document.

    Raises:
        ValueError: broken YAML or a duplicate key, with ``name`` and the line.
    """
    loader = _Loader(text)
    loader.name = name
    try:
        value = loader.get_single_data()
        _refuse_circles(value, name)
        return value
    except RecursionError as error:
        raise ValueError(f"{name}: not valid YAML: nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def _refuse_circles(value: Any, name: str) -> None:
    """Refuses an alias that stands within what it names: such a value has no end."""
    open_, done = set[int](), set[int]()

    def visit(one: Any) -> None:
        if not isinstance(one, (dict, list)) or id(one) in done:
            return
        if id(one) in open_:
            raise ValueError(f"{name}: not valid YAML: an alias (*...) stands within what it names")
        open_.add(id(one))
        for inner in one.values() if isinstance(one, dict) else one:
            visit(inner)
        done.add(id(one))

    visit(value)


def read_yaml(path: Path) -> Values:
    """Returns the mapping in a YAML file, or raises a ValueError that names the file."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a config is a mapping of keys to values, found {type(values).__name__}")
    return values


def write_yaml(values: Mapping[str, Any]) -> str:
    """Returns ``values`` as YAML that ``parse_yaml`` reads back unchanged."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def unknown_key(path: str, allowed: Iterable[str]) -> ValueError:
    """Returns the error for a key that does not exist: its dotted path and the nearest valid one."""
    parent, _, key = path.rpartition(".")
    names = sorted(allowed)
    near = get_close_matches(key, names, n=1, cutoff=0.6)
    if near:
        return ValueError(f"{path}: unknown key; did you mean {parent}{'.' if parent else ''}{near[0]}?")
    hint = f"allowed are {', '.join(names)}" if parent else "`alignlab train --help-all` lists all"
    return ValueError(f"{path}: unknown key; {hint}")


def block_of(values: Values, dotted: str) -> tuple[Values, str]:
    """Returns the block that holds a dotted key, made where it is missing, and the key's last part.

    Raises:
        ValueError: something on the way has no keys.
    """
    *parents, last = dotted.split(".")
    at = values
    for depth, parent in enumerate(parents):
        if at.get(parent) is None:
            at[parent] = {}
        at = at[parent]
        if not isinstance(at, dict):
            raise ValueError(f"{dotted}: {'.'.join(parents[: depth + 1])} is {at!r}, which has no keys")
    return at, last


def split_command_line(arguments: Sequence[str]) -> tuple[str | None, list[tuple[str, str]]]:
    """Splits ``CONFIG --key value --other=value`` into the config and ``(key, text)`` pairs; either may come first.

    Keys are taken whole: no abbreviations, no flags without a value.
    """
    config: str | None = None
    options: list[tuple[str, str]] = []
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith("--"):
            key, equals, text = argument[2:].partition("=")
            if not equals:
                following = next(rest, None)
                if following is None or following.startswith("--"):
                    raise ValueError(f"--{key} needs a value: --{key} VALUE or --{key}=VALUE")
                text = following
            options.append((key, text))
        elif config is None:
            config = argument
        else:
            raise ValueError(f"one config at a time: found {config!r} and {argument!r}; overrides start with --")
    return config, options


def readable_type(hint: Any) -> str:
    """Returns a type as an error message should say it: ``int``, ``text or null``, ``one of a, b``."""
    if hint is type(None):
        return "null"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " * (len(arguments) > 1) + ", ".join(str(value) for value in arguments)
    if typing.get_origin(hint) in (dict, list):
        inner = readable_type(arguments[-1])
        kind = "mapping" if typing.get_origin(hint) is dict else "list"
        return kind if inner == "anything" else f"{kind} of {inner}"
    if arguments:
        return " or ".join(readable_type(argument) for argument in arguments)
    names = {str: "text", bool: "true or false", dict: "mapping", list: "list", Any: "anything"}
    return names.get(hint) or str(getattr(hint, "__name__", hint))


def _plain_type(hint: Any) -> Any:
    """Returns a type that YAML can express: an enum becomes the choice of its values, an object anything."""
    if is_dataclass(hint):
        return Any
    members = typing.get_args(hint) or (hint,)
    enums = [member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)]
    return Literal[tuple(str(value.value) for value in enums[0])] if enums else hint


def _accepts_text(hint: Any) -> bool:
    if typing.get_origin(hint) in (dict, list):
        return False
    return hint is str or any(isinstance(part, str) or _accepts_text(part) for part in typing.get_args(hint))


def _accepts_null(hint: Any) -> bool:
    return hint in (Any, None, type(None)) or any(map(_accepts_null, typing.get_args(hint)))


@dataclass(frozen=True)
class Key:
    """A dotted key of a config; ``default`` is ``dataclasses.MISSING`` where one must be given."""

    name: str
    type: Any
    default: Any
    help: str


class Schema:
    """Keys, types and defaults of a config, gathered from dataclasses; jsonargparse checks values against them."""

    def __init__(self) -> None:
        self.groups: dict[str, list[Key]] = {}
        self.types: dict[str, Any] = {}
        self._parser = ArgumentParser(exit_on_error=False)

    def add(self, title: str, keys: Iterable[Key]) -> None:
        """Adds a group of keys."""
        for key in keys:
            self.groups.setdefault(title, []).append(key)
            self.types[key.name] = _plain_type(key.type)
            given = {"required": True} if key.default is MISSING else {"default": key.default}
            self._parser.add_argument(f"--{key.name}", type=self.types[key.name], **given)

    def add_dataclass(self, title: str, cls: Any, prefix: str = "", skip: Iterable[str] = (), help: Help = str) -> None:
        """Adds the fields of a dataclass; ``help`` gives the text of fields that carry none in their metadata."""
        hints = typing.get_type_hints(cls)
        kept = [field for field in fields(cls) if field.init and field.name not in set(skip)]
        self.add(
            title,
            [Key(prefix + f.name, hints[f.name], _default(f), f.metadata.get("help") or help(f.name)) for f in kept],
        )

    def override(self, values: Mapping[str, Any], options: Iterable[tuple[str, str]]) -> Values:
        """Returns ``values`` with command-line ``(dotted key, text)`` pairs put in; the file's siblings stay."""
        result = copy.deepcopy(dict(values))
        for key, text in options:
            structured = text[:1] in ("[", "{") or text in ("null", "~")
            hint = self.types.get(key)
            switch = text in ("true", "false") and bool in typing.get_args(hint)
            keep = not structured and not switch and _accepts_text(hint)
            try:
                where, last = block_of(result, key)
            except ValueError as error:
                raise ValueError(f"--{error}") from error
            where[last] = text if keep else parse_yaml(text, f"--{key}")
        return result

    def check(self, values: Mapping[str, Any]) -> Values:
        """Returns all values, defaults included, nested as ``values`` are.

        Raises:
            ValueError: an unknown key, a missing key or a value of another type, named by its dotted path.
        """
        self._check_keys(values, "")
        try:
            parsed: Values = self._parser.parse_object(copy.deepcopy(dict(values))).as_dict()
        except ArgumentError as error:
            raise ValueError(self._message(error, values)) from error
        for key, hint in self.types.items():  # jsonargparse takes null for any option; "yes" and "5" it turns into
            found = _get(parsed, key)  # what the type wants
            if (found is None and not _accepts_null(hint)) or _changed_text(_get(values, key), found):
                raise ValueError(self._wrong_type(key, values))
        return parsed

    def _check_keys(self, values: Mapping[str, Any], prefix: str) -> None:
        allowed = {key[len(prefix) :].split(".")[0] for key in self.types if key.startswith(prefix)}
        for key, value in values.items():
            if key not in allowed:
                raise unknown_key(f"{prefix}{key}", allowed)
            if f"{prefix}{key}" not in self.types:  # a block of keys
                if not isinstance(value, Mapping):
                    raise ValueError(f"{prefix}{key}: expected mapping, found {value!r}")
                self._check_keys(value, f"{prefix}{key}.")

    def _wrong_type(self, key: str, values: Mapping[str, Any]) -> str:
        found = _get(values, key)
        choices = [str(choice) for choice in typing.get_args(self.types[key])]
        if isinstance(found, str) and len(choices) > 8:
            near = get_close_matches(found, choices, n=3, cutoff=0.4) or choices
            return f"{key}: there is no {found!r}; did you mean {' or '.join(near)}?"
        expected = f"{key}: expected {readable_type(self.types[key])}, found"
        if found is None:
            return f"{expected} null; for the default leave the key out"
        return f"{expected} {'text ' if isinstance(found, str) else ''}{found!r}"

    def _message(self, error: ArgumentError, values: Mapping[str, Any]) -> str:
        named = re.search(r'Parser key "([^"]+)"', str(error))
        if named and named[1] in self.types:
            return self._wrong_type(named[1], values)
        missing = re.search(r"arguments are required: (.+)", str(error))
        return f"{missing[1]}: required, and not given" if missing else " ".join(str(error).split())


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _get(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _changed_text(before: Any, after: Any) -> bool:
    """True if a text somewhere in ``before`` has become something else in ``after``."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return any(_changed_text(value, after.get(key)) for key, value in before.items())
    if isinstance(before, list) and isinstance(after, list):
        return any(map(_changed_text, before, after))
    return isinstance(before, str) and not isinstance(after, str)
