"""Which rooms the code goes through, counted: one training step, and one whole `alignlab train`, on a tiny model.

python benchmarks/rooms.py [step|train]

A switch is a call from the code of one room into that of another; calls through torch and transformers count for the
room that made them. What runs in other processes and threads is not seen.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from making import make_model, make_rows, make_tokenizer  # noqa: E402

SMALL = """--max_steps 2 --per_device_train_batch_size 4 --gradient_accumulation_steps 1
--eval_strategy no --save_strategy no --disable_tqdm true"""


class Trace:
    """The rooms that were entered while it was on, in order, each with the function that was called there."""

    def __init__(self) -> None:
        self.entered: list[tuple[str, str]] = []
        self._open: list[str] = []

    def start(self) -> None:
        sys.setprofile(self._event)

    def stop(self) -> None:
        sys.setprofile(None)

    @property
    def rooms(self) -> list[str]:
        """Every room once, in the order in which they were entered first."""
        return list(dict.fromkeys(room for room, _ in self.entered))

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return") or (room := _room(frame.f_code.co_filename)) is None:
            return
        if event == "return":
            self._open = self._open[:-1]
            return
        if room != (self._open[-1] if self._open else None):
            self.entered.append((room, frame.f_code.co_name))
        self._open.append(room)


def _room(file: str) -> str | None:
    """Returns the room of a file; the package's own files and those of others are in none."""
    if not file.startswith(str(ROOT)):
        return None
    parts = Path(file).resolve().relative_to(ROOT).parts
    if parts[0] == "alignlab" and len(parts) > 2:
        return parts[1]
    return parts[0] if parts[0] in ("losses", "data") else None


def step(folder: Path) -> Trace:
    """Traces the second optimiser step of a run of DPO with a cached reference."""
    from transformers import TrainerCallback

    from alignlab import PreferenceConfig, PreferenceTrainer

    trace, begun = Trace(), [0]

    class Traced(PreferenceTrainer):
        def get_batch_samples(self, *args: Any) -> Any:
            begun[0] += 1
            if begun[0] == 2:
                trace.start()
            return super().get_batch_samples(*args)

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            trace.stop()

    args = PreferenceConfig(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=4,
        max_steps=2,
        report=False,
        save_strategy="no",
        disable_tqdm=True,
        score_cache_dir=str(folder / "scores"),
    )
    trainer = Traced(make_model(), args, "dpo", train_dataset=make_rows(16), processing_class=make_tokenizer())
    trainer.add_callback(Stop())
    try:
        trainer.train()
    finally:
        trace.stop()
    return trace


def train(folder: Path) -> Trace:
    """Traces `alignlab train dpo.yaml` from its first line to its last."""
    from alignlab.cli import main

    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    rows = "".join(json.dumps(row) + "\n" for row in make_rows(24))
    (folder / "pairs.jsonl").write_text(rows, encoding="utf-8")
    words = ["train", "dpo.yaml", "--model.name_or_path", str(folder / "model"), "--output_dir", str(folder / "run")]
    words += ["--data.train", str(folder / "pairs.jsonl"), "--data.eval_rows", "8"]
    words += ["--score_cache_dir", str(folder / "scores"), *SMALL.split()]
    trace = Trace()
    trace.start()
    try:
        main(words)
    finally:
        trace.stop()
    return trace


def report(name: str, run: Callable[[Path], Trace], every: bool) -> None:
    """Prints what a run went through."""
    with tempfile.TemporaryDirectory() as folder:
        trace = run(Path(folder))
    print(f"{name}: {len(trace.rooms)} rooms, {len(trace.entered)} switches: {', '.join(trace.rooms)}")
    if every:
        print("  " + "\n  ".join(f"{room}.{function}" for room, function in trace.entered))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    asked = sys.argv[1:] or ["step", "train"]
    for one in asked:
        report(one, {"step": step, "train": train}[one], every=one == "step")
