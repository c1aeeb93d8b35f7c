"""A loop that is killed again and again, in other batches each time, ends with the bytes of one that was left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launching import TORCHRUN
from making import make_rows

from alignlab.answers import read_answers
from alignlab.cli import main
from alignlab.config import write_yaml


@pytest.mark.slow
def test_four_kills_and_two_ranks(tmp_path: Path) -> None:
    """``benchmarks/loop_kills.py``, which kills twelve times by itself; its lives are forks of a fresh process."""
    program = Path(__file__).resolve().parents[1] / "benchmarks" / "loop_kills.py"
    words = [sys.executable, str(program), "--kills", "4", "--ranks", "--folder", str(tmp_path / "loop")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "4 kills: 73 files, other: none" in done.stdout
    assert "two ranks: 73 files, other: none" in done.stdout


@pytest.mark.slow
def test_two_ranks_of_a_job_that_is_not_the_last_of_its_array(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ranks end where others are still at their part; then another one puts the file together.

    Four prompts, one to a shard: the second of two jobs draws the last two, a rank each.
    """
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in make_rows(4)))
    loop = {
        "config": "dpo.yaml",
        "output_dir": str(tmp_path / "rounds"),
        "rounds": 1,
        "start": str(model_path),
        "prompts": {"path": str(tmp_path / "p.jsonl")},
        "sample": {"samples": 2, "max_new_tokens": 4, "batch_size": 2, "unfinished": "keep"},
        "judge": {"check": f"{tmp_path / 'mine.py'}:verify"},
    }
    (tmp_path / "mine.py").write_text("def verify(prompt, answer):\n    return float(len(answer))\n")
    (tmp_path / "loop.yaml").write_text(write_yaml(loop))
    for name, value in (("COUNT", "2"), ("MIN", "0"), ("ID", "1")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    words = ["-m", "alignlab", "rounds", str(tmp_path / "loop.yaml"), "--stage", "1/sample"]
    done = subprocess.run([*TORCHRUN, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    parts = tmp_path / "rounds/round-01/sample/answers.jsonl.parts"
    assert sorted(one.name for one in parts.glob("[0-9]*")) == ["2-3.jsonl", "3-4.jsonl"]
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert main(["rounds", str(tmp_path / "loop.yaml"), "--stage", "1/sample"]) == 0
    assert len(list(read_answers(tmp_path / "rounds/round-01/sample/answers.jsonl"))) == 4
    assert not parts.exists()
