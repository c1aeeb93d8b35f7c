"""``alignlab score`` fills the cache that the same run then reads; a run without a cached reference is refused."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from making import make_rows

from alignlab.cli import main


@pytest.fixture
def config(tmp_path: Path, model_path: Path) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(6)))
    (tmp_path / "run.yaml").write_text(f"""
loss: {{name: dpo}}
model: {{name_or_path: {model_path}}}
data: {{train: {tmp_path}/rows.jsonl}}
output_dir: {tmp_path}/out
score_cache_dir: {tmp_path}/scores
max_steps: 1
save_strategy: "no"
disable_tqdm: true
""")
    return str(tmp_path / "run.yaml")


def test_a_training_finds_what_scoring_left(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six pairs are twelve completions; the second pass and the training score none.

    The file of the rows is hashed once in all: the run, which asks whether its folder holds it, and the prepared set
    remember it in the same place.
    """
    hashed, digest = [], hashlib.file_digest

    def told(file: Any, name: str) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", told)
    os.utime(tmp_path / "rows.jsonl", (1e9, 1e9))
    assert main(["score", config]) == 0
    assert "reference: 12 completions scored here" in capsys.readouterr().out
    shards = sorted((tmp_path / "scores").rglob("*.safetensors"))
    assert len(shards) == 1
    assert main(["score", config]) == 0
    assert "reference: every completion is scored" in capsys.readouterr().out
    assert main(["train", config]) == 0
    assert sorted((tmp_path / "scores").rglob("*.safetensors")) == shards
    assert not (tmp_path / "out" / "checkpoint-1").exists()
    assert hashed.count("rows.jsonl") == 1


def test_scoring_without_a_cached_reference_is_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", config, "--reference", "live"]) == 2
    assert "nothing to score: this run keeps no scores in the cache (reference: live" in capsys.readouterr().err
    assert main(["score", config, "--loss.name", "simpo"]) == 2
    assert "loss.name: simpo" in capsys.readouterr().err


def test_a_loss_of_ones_own_is_checked_before_the_model_is_loaded(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A mean over rows stops the run, though there is no model to load; the mask multiplied in is a warning."""
    (tmp_path / "mine.py").write_text(
        "def mean(batch):\n    return batch.rejected.sum_logps.mean()\n\n\n"
        "def times(batch):\n    return (batch.rejected.logps * batch.rejected.mask).sum(-1)\n"
    )
    assert main(["train", config, "--loss.name", f"{tmp_path}/mine.py:mean", "--model.name_or_path", "none"]) == 2
    assert (
        f"loss.name: {tmp_path}/mine.py:mean cannot be trained on: {tmp_path}/mine.py:1 (mean): the loss must have "
        "shape [8], one number a row, found []" in capsys.readouterr().err
    )
    assert main(["train", config, "--loss.name", f"{tmp_path}/mine.py:times"]) == 0
    assert "mine.py:times does not keep the contract of a loss: padding: nan under the mask" in caplog.text
