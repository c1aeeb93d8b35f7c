"""What names a judge, and which options it may be given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignlab.judges import Comparison, build_judge

GOOD, BAD = "a good answer", "a bad answer"
ONE = Comparison("Why?", GOOD, BAD)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{folder}/mine.py:reward", None),
        ("{folder}/mine.py:missing", r"mine.py has no function 'missing'; found reward, three_and_more"),
        ("{folder}/none.py:reward", "judge.name: no file"),
        ("{folder}/broken.py:reward", "broken.py cannot be imported: ZeroDivisionError"),
        ("{folder}/mine.py:three_and_more", r"takes 4 arguments; allowed are \(prompt, completion\)"),
        ({"name": "{folder}/mine.py:reward", "model": "m"}, "judge.model: a function takes no options here"),
        ({"model": "m"}, "judge.name: expected file.py:function"),
        ("http://localhost:1/v1", "judge.model: required for http://localhost:1/v1"),
        (
            {"name": "http://localhost/v1", "model": "m", "max_request": 3},
            "judge.max_request: unknown key; did you mean",
        ),
        ({"name": "http://localhost/v1", "model": "m", "workers": "3"}, "judge.workers: expected int, found '3'"),
        ({"name": "http://localhost/v1", "model": "m", "timeout": 0}, "judge.timeout: expected more than 0, found 0"),
        (
            {"name": "http://localhost/v1", "model": "m", "max_cost": 1.0},
            "judge.max_cost: needs price_in and price_out",
        ),
        ({"name": "https://me:secret@host/v1", "model": "m"}, "judge.name: secrets do not belong in an address"),
        ({"name": "http://[half/v1", "model": "m"}, "judge.name: Invalid IPv6 URL"),
    ],
)
def test_specs(spec: Any, message: str | None, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def reward(prompt, completion, scale=2.0):\n    return scale * len(completion)\n"
        "def three_and_more(a, b, c, d):\n    return 0\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    text = json.loads(json.dumps(spec).replace("{folder}", str(tmp_path)))
    if message is None:
        assert build_judge(text)([ONE])[0].reward == 2.0 * len(GOOD)
    else:
        with pytest.raises(ValueError, match=message):
            build_judge(text)
