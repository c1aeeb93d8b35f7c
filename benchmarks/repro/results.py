"""What every reproduction shares: its options, a CSV that takes up where it stopped, intervals over seeds, figures."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Two-sided 95% quantiles of Student's t by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
T95 |= {10: 2.228, 11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093}


def options(description: str | None, words: Sequence[str] | None, seeds: int = 5) -> argparse.Namespace:
    """Returns the options of a reproduction: quick, seeds, output."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of a few runs: shows that it works, no result"
    )
    parser.add_argument("--seeds", type=int, default=seeds, help="how many, from 0 on (%(default)s; quick: 2)")
    parser.add_argument("--output", type=Path, default=Path("runs/repro"), help="folder of CSV and figure")
    chosen = parser.parse_args(words)
    chosen.seeds = min(chosen.seeds, 2) if chosen.quick else chosen.seeds
    return chosen


class Runs:
    """The runs of a reproduction as rows of a CSV: written one by one, and not made again where a row stands already.

    Args:
        path: the CSV. keys: the columns that tell runs apart.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, tuple(keys)
        self.rows: list[Row] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [{name: _read(value) for name, value in row.items()} for row in csv.DictReader(file)]
        self._stamp = environment()

    def run(self, make: Callable[[], Row | Iterable[Row]], **key: Any) -> None:
        """Adds the rows that ``make`` returns under ``key``, unless rows of that key are there."""
        if any(all(row[name] == value for name, value in key.items()) for row in self.rows):
            return
        start = time.process_time()
        made = make()
        rows = [made] if isinstance(made, dict) else list(made)
        seconds = round((time.process_time() - start) / len(rows), 3)
        for row in rows:
            self.rows.append({**key, **row, "cpu_seconds": seconds, **self._stamp})
        self._append(self.rows[-len(rows) :])
        print(" ".join(f"{name}={_short(value)}" for name, value in (key | rows[-1]).items()), flush=True)

    def _append(self, rows: list[Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.is_file()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            # The columns are those of the first row of the file, in their order.
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def pick(self, **key: Any) -> list[Row]:
        """Returns the rows with these values."""
        return [row for row in self.rows if all(row[name] == value for name, value in key.items())]

    def cpu_minutes(self) -> float:
        """Returns the processor time of all runs, supervised starts and imports left out."""
        return float(sum(row["cpu_seconds"] for row in self.rows)) / 60


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _read(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def environment() -> Row:
    """Returns machine, versions and commit, the last columns of every row."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "torch": version("torch"),
        "transformers": version("transformers"),
        "commit": commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """Returns the commit of this checkout, with a + where tracked files differ from it; "" outside of git."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "--short", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "../..") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


# ---- intervals ---------------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean and its 95% t interval (mean, low, high); low and high are the mean for a single value.

    >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0, 4.0])]  # standard error sqrt(5 / 3) / 2 = 0.645, times 3.182
    [2.5, 0.446, 4.554]
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, mean, mean
    half = T95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


class Claims:
    """Statements over seeds: what was compared, the mean paired difference, its 95% interval, what follows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, claim: str, values: Sequence[float]) -> None:
        """Adds a claim of the form "this is above 0" with its value for each seed."""
        _, low, high = interval(values)
        verdict = "holds" if low > 0 else "the opposite holds" if high < 0 else "undecided"
        self.note(claim, values, verdict if len(values) > 1 else "one seed")

    def note(self, claim: str, values: Sequence[float], verdict: str = "") -> None:
        """Adds an estimate that claims nothing."""
        mean, low, high = interval(values)
        row = {"claim": claim, "mean": mean, "low": low, "high": high, "seeds": len(values), "verdict": verdict}
        self.rows.append(row)

    def write(self, path: Path) -> None:
        """Writes the claims as CSV and prints them."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: _short(value) for name, value in row.items()} for row in self.rows)
        for row in self.rows:
            print(f"{row['claim']}: {row['mean']:.3g} [{row['low']:.3g}, {row['high']:.3g}] {row['verdict']}")


# ---- figures -----------------------------------------------------------------------------------------------------


def panels(columns: int, rows: int = 1) -> tuple[Any, list[Any]]:
    """Returns a figure with so many panels, row by row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (4.2 * columns, 3.4 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def band(axis: Any, rows: Sequence[Row], x: str, y: str, label: str) -> None:
    """Draws the mean of a column over another one, with its 95% interval over the seeds."""
    places = sorted({row[x] for row in rows})
    means = [interval([row[y] for row in rows if row[x] == place]) for place in places]
    [line] = axis.plot(places, [mean for mean, _, _ in means], marker="." if len(places) < 12 else None, label=label)
    axis.fill_between(places, *zip(*[ends[1:] for ends in means], strict=True), color=line.get_color(), alpha=0.15)


def save(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG without a date, so that the same numbers give the same file."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)
