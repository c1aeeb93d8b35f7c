"""Prompts and completions are found again as they stood in the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignlab.evaluation.dialogues import read_dialogues


def test_dialogues_stand_as_in_the_data(tmp_path: Path) -> None:
    """Messages stay messages, text stays text; the place is file and line."""
    rows: list[dict[str, Any]] = [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "chosen": [{"role": "assistant", "content": "Hello!"}],
            "rejected": [{"role": "assistant", "content": "?"}],
        },
        {"prompt": "Or?", "completion": "Yes.", "label": True},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_dialogues(str(path), {f"{path}:{line}" for line in (1, 2, 3, 9)})
    assert found == {
        f"{path}:1": ("Why?", "So."),
        f"{path}:2": ([{"role": "user", "content": "Hi"}], "Hello!"),
        f"{path}:3": ("Or?", "Yes."),
    }
