"""Configs of other trainers made into ours, with what became of each key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import from_axolotl, from_llamafactory, from_trl
from .account import Account, Line, choose
from .checks import CANNOT_WORK, MOVED
from .parser import Values, read_yaml, write_yaml
from .run import load_config, schema

SOURCES: dict[str, tuple[Callable[[Account, str | None], None], Mapping[str, Any]]] = {
    "trl": (from_trl.convert, from_trl.DEFAULTS),
    "llamafactory": (from_llamafactory.convert, from_llamafactory.DEFAULTS),
    "axolotl": (from_axolotl.convert, from_axolotl.DEFAULTS),
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
    convert, defaults = choose("import", source, SOURCES)
    path = Path(path)
    account = Account(read_yaml(path), defaults)
    try:
        convert(account, trainer)
    except (TypeError, AttributeError, LookupError) as error:
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
