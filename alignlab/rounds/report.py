"""The report over rounds: what was trained on, what the model became, as JSON and as a table of Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from alignlab.checkpoints import write_whole

from .config import STOPPING, RoundsConfig
from .stages import Stage
from .watch import stopped

JSON, PAGE = "rounds.json", "rounds.md"
Row = dict[str, Any]
Cell = Callable[[Row], str]


def round_rows(loop: RoundsConfig) -> list[dict[str, Any]]:
    """Returns the figures of each round that has any, round 0 being the start.

    ``watch``: of answers to held-out prompts: scores by judge (``stopping`` is the one that decides the end), KL to the
    start and to the round before, length, diversity. ``sample`` and ``judge``: of the answers that the round drew from
    the model before it. ``pairs``: how many, and what became of all answers.
    """
    rows = []
    for round_ in range(loop.rounds + 1):
        found: dict[str, Any] = {"round": round_}
        for name in ("sample", "judge", "pair", "watch"):
            account = Stage(loop, round_, name).made.account
            if account:
                found[name] = account
        if len(found) > 1:
            found["stopped"] = stopped(loop, round_)
            rows.append(found)
    return rows


def write_report(loop: RoundsConfig) -> Path:
    """Writes ``rounds.json`` and ``rounds.md`` into the loop's folder; returns the latter."""
    rows = round_rows(loop)
    write_whole(loop.folder / JSON, json.dumps(rows, indent=1) + "\n")
    page = loop.folder / PAGE
    header, *cells = table(rows)
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *cells)]
    ends = [f"\nThe loop ended after round {row['round']}: {row['stopped']}.\n" for row in rows if row["stopped"]]
    write_whole(page, "\n".join(["# What the rounds did\n", *lines, *ends[:1], ""]) + best_line(rows))
    return page


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns the rounds as lines of cells, the first being the header; columns that no round has are left out."""
    judges = sorted({name for row in rows for name in row.get("watch", {}).get("scores", {})}, key=_stopping_first)
    drawn = sorted({name for row in rows for name in row.get("judge", {}).get("scores", {})})
    columns: list[tuple[str, Cell]] = [("round", lambda row: str(row["round"]))]
    columns += [(f"held-out {name}", partial(_score, "watch", name)) for name in judges]
    columns += [("KL to start", partial(_figure, "watch", "kl_start", 2))]
    columns += [("KL to round before", partial(_figure, "watch", "kl_previous", 2))]
    columns += [(f"drawn {name}", partial(_score, "judge", name)) for name in drawn]
    columns += [("pairs", partial(_figure, "pair", "pairs", 0)), ("ties", _ties)]
    columns += [("tokens", partial(_shape, "tokens", 1)), ("finished", partial(_shape, "finished", 2))]
    columns += [("distinct 2-grams", partial(_shape, "distinct_2", 3))]
    lines = [[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]
    kept = [n for n in range(len(columns)) if any(line[n] != "" for line in lines[1:])]
    return [[line[n] for n in kept] for line in lines]


def best_line(rows: list[dict[str, Any]]) -> str:
    """Says which round has the best held-out score by the judge that decides."""
    means = {row["round"]: row["watch"]["scores"][STOPPING]["mean"] for row in rows if "watch" in row}
    known = {round_: mean for round_, mean in means.items() if mean is not None}
    if not known:
        return ""
    best = max(known, key=lambda round_: known[round_])
    return f"\nThe best held-out score, {known[best]:.3f}, is that of round {best}.\n"


def _score(stage: str, name: str, row: Row) -> str:
    found = row.get(stage, {}).get("scores", {}).get(name)
    if found is None or found["mean"] is None:
        return ""
    return f"{found['mean']:+.3f}" + ("" if found["error"] is None else f" ± {found['error']:.3f}")


def _figure(stage: str, name: str, digits: int, row: Row) -> str:
    value = row.get(stage, {}).get(name)
    return "" if value is None else f"{value:.{digits}f}"


def _shape(name: str, digits: int, row: Row) -> str:
    """Returns a figure of held-out answers, or else of those that the round drew."""
    account: Row = row.get("watch") or row.get("sample") or {}
    value = account.get(name, account.get("diversity", {}).get(name))
    return "" if value is None else f"{value:.{digits}f}"


def _ties(row: Row) -> str:
    return str(row["pair"]["fates"].get("tie", 0)) if "pair" in row else ""


def _stopping_first(name: str) -> tuple[bool, str]:
    return name != STOPPING, name
