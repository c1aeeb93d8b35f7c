"""What the commands print: the losses, the keys of a config, the stores of the score cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from alignlab.cache import CacheEntry
from alignlab.config import Key, readable_type
from alignlab.losses import Description, Needs


def losses_table(descriptions: Iterable[Description], details: bool = False) -> Table:
    """One row per loss: name, summary, needs, options with defaults; ``details`` adds formula and source."""
    table = Table("loss", "", "needs", "options", show_lines=True)
    for one in descriptions:
        lines = [one.summary] + ([f"also called {', '.join(one.aliases)}"] if one.aliases else [])
        if details:
            lines += [f"{key}: {text}" for key in ("formula", "source", "elsewhere") if (text := getattr(one, key))]
        options = "\n".join(f"{key}: {_value(value)}" for key, value in one.defaults.items())
        table.add_row(one.name, _plain("\n".join(lines)), _needs(one.needs), options)
    return table


def losses_markdown(descriptions: Iterable[Description]) -> str:
    """Returns the losses as a table in Markdown: formula, needs, defaults, paper, and the name elsewhere."""
    lines = ["| loss | formula | needs | options | paper | elsewhere |", "|---|---|---|---|---|---|"]
    for one in descriptions:
        name = f"`{one.name}`" + "".join(f"<br>also `{alias}`" for alias in one.aliases)
        options = "<br>".join(f"`{key}: {_value(value)}`" for key, value in one.defaults.items())
        formula = one.formula + (f"<br>{one.collision}" if one.collision else "")
        needs = _needs(one.needs).replace("\n", "<br>")
        cells = (name, formula, needs, options, one.source, one.elsewhere)
        lines.append("| " + " | ".join(cell.replace("``", "`").replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def keys_table(title: str, keys: Iterable[Key]) -> Table:
    """One row per key of a config: its dotted name, type, default and help."""
    table = Table("key", "type", "default", "", title=title, title_justify="left", box=None, pad_edge=False)
    for key in keys:
        default = "(required)" if key.default is dataclasses.MISSING else _value(key.default)
        table.add_row(key.name, readable_type(key.type), default, _plain(key.help))
    return table


def cache_table(entries: Iterable[CacheEntry], title: str) -> Table:
    """One row per store: whose scores, how many, how big, when last used."""
    table = Table("fingerprint", "model", "dtype", "entries", "tokens", "MB", "shards", "last used", title=title)
    for one in entries:
        counts = (str(one.entries), str(one.tokens), f"{one.megabytes:.1f}", str(one.shards))
        table.add_row(one.fingerprint[:16], one.model, one.dtype, *counts, f"{one.last_used:%Y-%m-%d %H:%M}")
    return table


def _needs(needs: Needs) -> str:
    """Returns what differs from the defaults of ``Needs``, one a line."""
    lines: list[str] = [needs.data]
    for field in dataclasses.fields(needs):
        value = getattr(needs, field.name)
        if field.name not in ("data", "totals_from") and value != field.default:
            lines.append(field.name if value is True else f"{field.name}: {_value(value)}")
    return "\n".join(lines)


def _value(value: Any) -> str:
    """Returns a value as YAML would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    return str(getattr(value, "value", value))


def _plain(text: str) -> str:
    """Returns a docstring's text without its markup."""
    return text.replace("``", "").replace("[`", "`").replace("`]", "`")
