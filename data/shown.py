"""The statistics of a set as tables for the terminal and as plain values for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from unicodedata import category

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .check import Statistics
from .schema import DataReport


def as_values(found: Statistics) -> dict[str, Any]:
    """Returns the statistics as what JSON can hold; labels are spelled ``true`` and ``false``."""
    values = asdict(found)
    values["labels"] = {str(label).lower(): number for label, number in found.labels.items()}
    if found.bias is not None:
        values["bias"]["longer_wins"] = found.bias.longer_wins
    return values


def render(found: Statistics) -> Group:
    """Lays the statistics out as tables for the terminal."""
    parts: list[Table | Text] = [_rows_table(found), _lengths_table(found), _truncation_table(found)]
    if found.bias is not None:
        parts.append(Text(bias_sentence(found)))
    if found.groups:
        parts.append(_groups_table(found))
    if found.report.bad_rows:
        parts.append(_bad_rows_table(found.report))
    return Group(*parts, *map(Text, sentences(found)), *map(Text, found.report.notes))


def facts(found: Statistics) -> dict[str, str]:
    """Returns the counts of a set by their names, as text."""
    report, rows = found.report, sum(found.labels.values())
    counts = {
        "repeat an earlier row": str(report.duplicates),
        "distinct prompts": str(found.distinct_prompts),
    }
    if found.near is not None:
        counts["nearly repeat an earlier prompt"] = str(found.near.count)
    if found.overlap is not None:
        counts["prompts that are in the other set"] = str(found.overlap.same)
        if found.overlap.near is not None:
            counts["prompts that are nearly in the other set"] = str(found.overlap.near.count)
    counts["truncated"] = str(report.rows_truncated)
    counts["prompts ending in whitespace"] = str(report.prompts_ending_in_space)
    if report.control_tokens_split:
        counts["spell control tokens, read as text"] = str(report.control_tokens_split)
    if report.control_tokens_kept:
        counts["spell control tokens, read as such"] = str(report.control_tokens_kept)
    every = sum(found.list_sizes.values())
    lists = {f"lists of {size}": f"{n} ({n / every:.1%})" for size, n in found.list_sizes.items()}
    if found.report.completions_repeated:
        lists["completions equal to another of their list"] = str(found.report.completions_repeated)
    labels = {f"labelled {str(label).lower()}": f"{n} ({n / rows:.1%})" for label, n in sorted(found.labels.items())}
    return counts | labels | lists


def sentences(found: Statistics) -> list[str]:
    """Says what to do about what was found, one sentence a thing."""
    said = [
        f"{found.tokens_per_row:.0f} {found.unit} a row (prompt once, and its completions): a step of "
        f"{found.rows_per_step} rows takes {found.tokens_per_row * found.rows_per_step:.0f} {found.unit}, "
        f"an epoch {found.steps_per_epoch} step{'s' * (found.steps_per_epoch != 1)}"
    ]
    if found.bias is not None:
        wins = f"{found.bias.longer_wins:.1%}"
        said.append(f'a judge who prefers the longer completion ("longer wins") is right in {wins}')
    if found.sampled_of is not None:
        said.insert(0, f"a sample: {found.report.rows_read} of {found.sampled_of} rows, drawn evenly over the sources")
    pairs = [("nearly the same prompt", found.near)]
    if found.overlap is not None:
        pairs.append(("nearly the same prompt in the other set", found.overlap.near))
        said += [f"the same prompt in the other set: {one} and {other}" for one, other in found.overlap.examples]
    for name, near in pairs:
        said += [f"{name}: {one} and {other}" for one, other in near.examples] if near is not None else []
    if found.near_asked and found.near is None:
        said.append("near-duplicate prompts were not looked for: pip install 'alignlab[near]' brings datasketch")
    return said


def bias_sentence(found: Statistics) -> str:
    """Says how often the better completion is the longer one."""
    assert found.bias is not None
    better, worse = ("desirable", "undesirable") if found.kind == "labelled" else ("chosen", "rejected")
    if found.kind == "lists":
        better, worse = "the better of two completions of a list", "the worse"
    bias = found.bias
    return (
        f"{better} is longer than {worse} in {bias.longer:.1%}, equal in {bias.equal:.1%}, "
        f"shorter in {bias.shorter:.1%}; mean difference {bias.difference:+.1f} {found.unit}"
    )


def _rows_table(found: Statistics) -> Table:
    table = Table(title=f"Rows ({found.kind})")
    for column in ("source", "weight", "read", "kept", "rejected", "per epoch"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for item in found.report.sources:
        counts = (item.rows_read, item.rows_kept, item.rows_rejected, item.rows_used)
        table.add_row(Text(item.name), f"{item.weight:g}", *map(str, counts))
    table.add_section()
    for name, number in facts(found).items():
        table.add_row(name, "", "", number, "", "")
    return table


def _lengths_table(found: Statistics) -> Table:
    table = Table(title=f"Lengths in {found.unit}")
    table.add_column("text")
    for column in ("min", "5 %", "median", "95 %", "max", "mean"):
        table.add_column(column, justify="right")
    for name, item in found.lengths.items():
        table.add_row(name, *map(str, item.quantiles), f"{item.mean:.1f}")
    return table


def _truncation_table(found: Statistics) -> Table:
    table = Table(title=f"Rows that truncation would touch, by max_length in {found.unit}")
    for length in found.truncation:
        table.add_column(str(length), justify="right")
    table.add_row(*(f"{share:.1%}" for share in found.truncation.values()))
    return table


def _groups_table(found: Statistics) -> Table:
    table = Table(title="Groups")
    table.add_column("group")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    total = sum(found.groups.values())
    for name, number in found.groups.items():
        table.add_row(Text(name), str(number), f"{number / total:.1%}")
    return table


def _bad_rows_table(report: DataReport) -> Table:
    more = report.rows_rejected - len(report.bad_rows)
    table = Table(title=f"Bad rows ({report.rows_rejected})", caption=f"... and {more} more" if more else None)
    table.add_column("row", overflow="fold")
    table.add_column("reason", overflow="fold")
    for row in report.bad_rows:
        table.add_row(Text(row.source), Text(row.reason))  # their brackets are no markup
    return table


def printable(text: str) -> str:
    """Spells characters that steer a terminal or turn the direction of text; newlines and tabs stay."""
    return "".join(one if one in "\n\t" or category(one)[0] != "C" else _spelled(one) for one in text)


def _spelled(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")
