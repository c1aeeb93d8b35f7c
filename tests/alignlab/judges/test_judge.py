"""What every judge is shown."""

from __future__ import annotations

from typing import Any

from alignlab.judges.judge import prompt_text


def test_prompt_text() -> None:
    parts = [{"type": "text", "text": "Yes?"}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": parts}]
    assert prompt_text(turns) == "user: Hello\n\nassistant: Yes?\n\n"
