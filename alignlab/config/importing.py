"""Configs of other trainers made into ours, with what became of each key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from . import from_axolotl, from_llamafactory, from_trl
from .account import Account, Line, choose
from .checks import CANNOT_WORK, MOVED
from .parser import Values, parse_yaml, read_yaml, write_yaml
from .run import load_config, schema

Source = tuple[Callable[[Account, str | None], None], Mapping[str, Any], set[str]]
SOURCES: dict[str, Source] = {
    "trl": (from_trl.convert, from_trl.DEFAULTS, from_trl.NUMBERS),
    "llamafactory": (from_llamafactory.convert, from_llamafactory.DEFAULTS, from_llamafactory.NUMBERS),
    "axolotl": (from_axolotl.convert, from_axolotl.DEFAULTS, from_axolotl.NUMBERS),
}
OLDER = {  # names that transformers had
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
}
PLACEHOLDERS = {"model": {"name_or_path": "path/to/sft-model"}, "data": {"train": "pairs.jsonl"}}


@dataclass(frozen=True)
class Imported:
    """A config of another trainer as ours.

    Attributes:
        values: our keys. lines: what became of theirs, in the order of their file, and then what was written out.
    """

    source: str
    path: Path
    values: Values
    lines: list[Line]

    def to_yaml(self) -> str:
        """Returns it as YAML that opens with what became of each key."""
        head = f"# Taken over from {self.source}: {self.path.name}. What became of each key:\n#\n"
        return head + "".join(f"#   {line}\n" for line in self.lines) + "\n" + write_yaml(self.values)


def import_config(source: str, path: str | Path, trainer: str | None = None) -> Imported:
    """Reads a config of another trainer and returns it as ours, checked.

    Args:
        source: trl, llamafactory or axolotl. trainer: of TRL's: dpo, kto, orpo, cpo or reward.

    Raises:
        ValueError: it is no preference training that can be taken over, or what came of it is no config; names the key.
    """
    convert, defaults, numbers = choose("import", source, SOURCES)
    path = Path(path)
    account = Account(_unquoted(read_yaml(path), defaults, numbers), defaults)
    for key in numbers & account.given.keys():
        if (found := account.given[key]) is not None and type(found) not in (int, float):
            raise ValueError(f"{path}: {key}: expected a number, found {found!r}")
    try:
        convert(account, trainer)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{path}: a key holds what {source} would not take there: {error}") from error
    _rest(account)
    for block, values in PLACEHOLDERS.items():
        for key, value in values.items():
            if key not in account.values.get(block, {}):
                account.write_out(f"{block}.{key}", f"{block}.{key}", value, "not in the file: write your own")
    order = list(account.given)
    lines = sorted(account.lines, key=lambda line: order.index(line.key) if line.key in order else len(order))
    values = {**{block: account.values.pop(block) for block in ("loss", "model", "data")}, **account.values}
    try:
        load_config(values)
    except ValueError as error:
        raise ValueError(f"{path}: what came of it is no config: {error}") from error
    return Imported(source, path, values, lines)


def _unquoted(given: Values, defaults: Mapping[str, Any], numbers: set[str]) -> Values:
    """Returns their keys with numbers in quotes as numbers, as their readers take them; what is text stays text."""
    numeric = numbers | {key for key, value in defaults.items() if type(value) in (int, float)}
    numeric |= {key for key, hint in schema().types.items() if {int, float} & {hint, *get_args(hint)}}

    def one(key: str, value: Any) -> Any:
        if not isinstance(value, str) or OLDER.get(key, key) not in numeric or not value.strip():
            return value
        try:
            found = parse_yaml(value, key)
        except ValueError:
            return value
        return found if type(found) in (int, float) else value

    return {key: one(key, value) for key, value in given.items()}


def _rest(account: Account) -> None:
    """Takes what is left by its name: keys of transformers are ours too; others are named as unknown."""
    types = schema().types
    for key, value in list(account.left.items()):
        ours = OLDER.get(key, key)
        if value is None:
            account.tell(key, "kept" if ours in types else "unknown", "null: the default" if ours in types else "null")
        elif ours in CANNOT_WORK and value not in CANNOT_WORK[ours][0]:
            account.drop(CANNOT_WORK[ours][1], key)
        elif ours in types and ours != key:
            account.move(key, ours)
        elif ours in types:
            account.keep(key)
        elif key in MOVED:
            account.drop(MOVED[key], key)
        else:
            account.tell(key, "unknown", "not a key that we know: nothing was made of it")
    evaluates = account.values.get("eval_strategy", "no") != "no" or account.values.get("eval_on_start")
    data = account.values.get("data", {})
    if evaluates and "eval" not in data and "eval_rows" not in data:
        account.write_out("data.eval_rows", "data.eval_rows", 200, "evaluation is on and no set is named: set your own")
