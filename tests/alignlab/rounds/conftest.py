"""A loop on a tiny model: prompts, held-out prompts and two judges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from making import make_rows

Make = Callable[..., dict[str, Any]]
JUDGES = """
def short(prompt, answer):
    return -float(len(answer))

def letters(prompt, answer):
    return float(len(set(answer)))
"""


@pytest.fixture
def loop(tmp_path: Path, model_path: Path) -> Make:
    """Returns the values of a loop of two rounds over eight prompts, four a round, with changes."""
    rows = make_rows(12)
    for name, some in (("prompts.jsonl", rows[:8]), ("held.jsonl", rows[8:])):
        lines = [
            json.dumps({"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}) for row in some
        ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "judges.py").write_text(JUDGES)
    train = {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "report": False}
    train |= {"learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True, "eval_strategy": "no", "data.eval_rows": None}

    def make(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "config": "dpo.yaml",
            "output_dir": str(tmp_path / "rounds"),
            "rounds": 2,
            "start": str(model_path),
            "prompts": {"path": str(tmp_path / "prompts.jsonl"), "per_round": 4},
            "sample": {"samples": 3, "max_new_tokens": 6, "unfinished": "keep"},
            "judge": {"short": f"{tmp_path / 'judges.py'}:short"},
            "train": train,
        }
        stop = changes.pop("stop", None)
        if stop is not None:
            values["stop"] = {
                "prompts": str(tmp_path / "held.jsonl"), "judge": f"{tmp_path / 'judges.py'}:letters", **stop
            }  # fmt: skip
        return values | changes

    return make
