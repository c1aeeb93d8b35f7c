"""The report of a run, or of several side by side: one HTML file that needs nothing else, and charts as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from alignlab.config import write_yaml

from .charts import run_charts
from .comparison import COMPARED, comparison_charts
from .drawing import MAX_POINTS, Chart, png, printable, svg, thinned
from .records import RunRecord, read_run, read_runs
from .sicknesses import diagnose
from .tables import config_differences, data_tables, flat, format_value, key_figures, over_seeds, runs_table
from .trials import importance_table, trials_chart, trials_table

PAGE, PLOTS = "report.html", "plots"


def write_report(folder: str | Path, output: str | Path | None = None, plots: bool = True) -> Path:
    """Writes the report of one run, by default ``report.html`` and ``plots/*.png`` in its folder; returns the page.

    Raises:
        FileNotFoundError, ValueError: ``folder`` is not that of a run.
    """
    run = read_run(Path(folder).resolve())
    page = Path(output) if output is not None else Path(folder) / PAGE
    charts = run_charts(run)
    _write(page, run_page(run, charts))
    if plots:
        _write_plots(page.parent / PLOTS, charts)
    return page


def compare_runs(
    folders: Iterable[str | Path], output: str | Path, plots: bool = False, trials: Mapping[str, Any] | None = None
) -> Path:
    """Writes one page with several runs side by side, and perhaps its charts as ``plots/*.png`` next to it.

    Args:
        trials: those of the search that the runs are of, as its ``trials.json`` has them.

    Raises:
        FileNotFoundError, ValueError: one of the folders is not that of a run.
    """
    runs = read_runs(folders, COMPARED)
    charts = comparison_charts(runs)
    if trials is not None and (chart := trials_chart(trials)):
        charts.insert(0, chart)
    page = Path(output)
    _write(page, comparison_page(runs, charts, trials))
    if plots:
        _write_plots(page.parent / PLOTS, charts)
    return page


def run_page(run: RunRecord, charts: Sequence[Chart]) -> str:
    """Returns the page of one run as HTML."""
    findings, not_judged = diagnose(run)
    sets, reports = data_tables(run)
    return _render(
        "run.html",
        title=run.name,
        run=run,
        model=run.config.get("model", {}).get("name_or_path", ""),
        figures=key_figures(run),
        findings=findings,
        not_judged=not_judged,
        charts=charts,
        samples=run.samples.get("rows") or [],
        changed=write_yaml(_changed(run.config)),
        config=write_yaml(run.config),
        sets=sets,
        reports=reports,
        environment=list(flat(run.environment).items()),
        metrics=[(name, format_value(value)) for name, value in sorted(run.metrics.items())],
    )


def comparison_page(runs: Sequence[RunRecord], charts: Sequence[Chart], trials: Mapping[str, Any] | None = None) -> str:
    """Returns the page of several runs as HTML."""
    head, rows = runs_table(runs)
    differences_head, differences = config_differences(runs)
    seeds_head, seeds = over_seeds(runs)
    health = [(run.name, *diagnose(run)) for run in runs]
    not_judged: dict[str, list[str]] = {}
    for name, _, missing in health:
        for one in missing:
            not_judged.setdefault(one.name, []).append(name)
    return _render(
        "runs.html",
        title=f"{len(runs)} runs",
        runs=runs,
        head=head,
        rows=rows,
        seeds_head=seeds_head,
        seeds=seeds,
        differences_head=differences_head,
        differences=differences,
        charts=charts,
        health=health,
        not_judged=list(not_judged.items()),
        trials=trials,
        trials_table=trials_table(trials) if trials else None,
        importance=importance_table(trials) if trials else [],
    )


def _changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a resolved config says beyond the defaults, blocks kept as blocks."""
    from alignlab.config import schema  # brings torch and transformers, which a comparison of runs does without

    defaults = {key.name: key.default for keys in schema().groups.values() for key in keys}
    changed: dict[str, Any] = {}
    for name, value in config.items():
        if name in ("model", "data") and isinstance(value, Mapping):
            inner = {key: one for key, one in value.items() if one != defaults.get(f"{name}.{key}")}
            changed[name] = inner
        elif value != defaults.get(name):
            changed[name] = value
    return changed


def _render(template: str, **values: Any) -> str:
    """Fills a template in: every value is escaped, and what cannot be shown as it is becomes a code."""

    def shown(value: Any) -> Any:
        return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        **values,
        svg=lambda chart: Markup(svg(chart)),
        thinned=thinned,
        points=MAX_POINTS,
        version=metadata.version("alignlab"),
    )


def _write(page: Path, text: str) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def _write_plots(folder: Path, charts: Iterable[Chart]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        png(chart, folder / f"{chart.key}.png")
