"""The statistics of a set as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .check import Statistics
from .shown import bias_sentence, facts, printable, sentences


def write_page(found: Statistics, path: str | Path) -> Path:
    """Writes the page: tables of rows, lengths, truncation, groups and bad rows, every text of the data escaped."""
    loader = FileSystemLoader(Path(__file__).resolve().parent / "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["printable"] = printable
    page = environment.get_template("check.html").render(
        found=found,
        facts=facts(found),
        sentences=[*sentences(found), *found.report.notes],
        bias=bias_sentence(found) if found.bias is not None else None,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
