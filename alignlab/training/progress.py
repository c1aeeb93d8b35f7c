"""What a run says while it trains: a live line and a table of six metrics on a terminal, plain lines in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as LiveLine
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from alignlab.data import printable
from alignlab.runtime import Lines, bar, clock_time, over, say, shown_as

Logs = Mapping[str, Any]

COLUMNS = {  # what is said of a log, by its heading; all else stands in trainer_state.json and goes to reporters
    "loss": "loss",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "chosen": "logps/chosen",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
}
MOST_GROUPS, WORST = 10, 3
HEAD_EVERY = 20  # rows of the table


class Progress(TrainerCallback):  # type: ignore[misc]
    """Says how far training is and what its logs say, in place of transformers' bars and printed dictionaries.

    The last step is logged too, so that a run shorter than ``logging_steps`` says what its loss was.

    Args:
        shown: "live", "lines" or "none", see ``shown_as``. seconds: between two lines of progress in a file.
        console: where a live line goes.
    """

    def __init__(self, shown: str, seconds: float, console: Console | None = None) -> None:
        self.shown, self.seconds = shown, seconds
        self.console = console or Console(highlight=False, markup=False)
        self.live: LiveLine | None = None
        self.lines: Lines | None = None
        self.rows = 0

    # ---- how far it is ---------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rows = 0
        if not state.is_world_process_zero:
            self.shown = "none"
        if self.shown == "live":
            columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn()]
            columns.append(TextColumn("{task.fields[rate]}"))
            self.live = LiveLine(*columns, TimeRemainingColumn(), console=self.console, transient=True)
            self.live.add_task("training", total=state.max_steps, completed=state.global_step, rate="")
            self.live.start()
        elif self.shown == "lines":
            self.lines = Lines("training", state.max_steps, "steps", self.seconds, done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True
        if self.live is not None:
            task = self.live.tasks[0]
            rate = "" if task.speed is None else f"{task.speed:.3g} steps/s"
            self.live.update(task.id, completed=state.global_step, rate=rate)
        if self.lines is not None:
            self.lines.update(state.global_step - self.lines.done)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the live line away; what comes next is printed where it was."""
        if self.live is not None:
            self.live.stop()
        self.live = self.lines = None

    def over(self, batches: Any, description: str, main: bool) -> Any:
        """Yields the batches of an evaluation; the live line, a bar or lines say how far it is."""
        total = len(batches)
        what = description.lower()
        if self.live is None or not main:
            yield from over(batches, bar(what, total, "batches", self.shown if main else "none", self.seconds))
            return
        task = self.live.add_task(what, total=total, rate="")
        self.live.update(self.live.task_ids[0], visible=False)
        try:
            yield from self.live.track(batches, total=total, task_id=task)
        finally:
            self.live.remove_task(task)
            self.live.update(self.live.task_ids[0], visible=True)

    # ---- what it logs ----------------------------------------------------------------------------------------------

    def on_log(self, args: Any, state: Any, control: Any, logs: Logs | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.shown == "none" or not logs:
            return
        prefix = prefix_of(logs)
        if prefix is None:
            self._say(_others(logs))
        else:
            where = f"step {state.global_step}" + (f" of {state.max_steps}" if state.max_steps else "")
            told = f"{where}  " + (f"{prefix.removesuffix('_')}  " if prefix else "")
            found = {name: logs[prefix + metric] for name, metric in COLUMNS.items() if prefix + metric in logs}
            if self.shown == "live":
                self._row(state.global_step, prefix, found)
            else:
                self._say(told + "  ".join(f"{name} {number(value)}" for name, value in found.items()))
            self._say(groups_line(logs, prefix))

    def _say(self, text: str | None) -> None:
        if text and self.shown == "live":
            self.console.print(printable(text), overflow="ignore", crop=False)  # ends lines between words
        elif text:
            say(printable(text))

    def _row(self, step: int, prefix: str, found: Mapping[str, Any]) -> None:
        """Prints a row of the table, under a heading that comes again so that it stays in sight."""
        width = min(14, max(9, (self.console.width - 20) // len(COLUMNS)))
        if self.rows % HEAD_EVERY == 0:
            head = f"{'step':>8}  " + "".join(f"{name:>{width}}" for name in COLUMNS)
            self.console.print(head, style="bold", no_wrap=True, overflow="ignore", crop=False)
        self.rows += 1
        cells = "".join(f"{number(found[name]) if name in found else '':>{width}}" for name in COLUMNS)
        note = f"  {printable(prefix.removesuffix('_'))}" if prefix else ""
        self.console.print(f"{step:>8}  {cells}{note}", style="cyan" if prefix else None, soft_wrap=True)


def use_progress(trainer: Trainer, asked: str, seconds: float) -> Progress:
    """Gives a trainer our progress in place of transformers' own; one of a notebook stays, beside silence of ours."""
    for stock in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(stock)
    notebook = any("Notebook" in type(one).__name__ for one in trainer.callback_handler.callbacks)
    shown = "none" if notebook else shown_as(asked, bars=not trainer.args.disable_tqdm)
    progress = Progress(shown, seconds)
    trainer.add_callback(progress)
    return progress


def prefix_of(logs: Logs) -> str | None:
    """Returns "" for a log of training, ``eval_`` or ``eval_NAME_`` for one of evaluation, None for any other."""
    if "loss" in logs:
        return ""
    found = [name for name in logs if name.startswith("eval_") and name.endswith("_loss")]
    return min(found, key=len).removesuffix("loss") if found else None


def number(value: Any) -> str:
    """Returns a number to four digits, anything else as text."""
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def groups_line(logs: Logs, prefix: str) -> str | None:
    """Returns what is said of groups: each of up to ten, the worst three of more; None where a log has none.

    They are told by their accuracies, or where a loss has none, by their losses.
    """
    for kind, worst_first in (("accuracy", 1), ("loss", -1)):
        pattern = re.compile(rf"{re.escape(prefix)}group/(.*)/{kind}", re.DOTALL)
        found = {match[1]: value for name, value in logs.items() if (match := pattern.fullmatch(name))}
        if not found:
            continue
        if len(found) <= MOST_GROUPS:
            return f"  {kind} by group: " + ", ".join(f"{name} {number(value)}" for name, value in found.items())
        worst = sorted(found, key=lambda name: worst_first * found[name])[:WORST]
        named = ", ".join(f"{name} {number(found[name])}" for name in worst)
        return f"  {kind} of the worst of {len(found)} groups: {named}"
    return None


def _others(logs: Logs) -> str:
    """Returns what is said of a log that is neither of training nor of evaluation."""
    if "train_runtime" in logs:
        loss = f", mean loss {number(logs['train_loss'])}" if "train_loss" in logs else ""
        return f"trained for {clock_time(logs['train_runtime'])}{loss}"
    return "  ".join(f"{name} {number(value)}" for name, value in logs.items() if name not in ("epoch", "total_flos"))
