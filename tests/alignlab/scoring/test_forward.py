"""Whole logits or chunks, whichever pays: a run cannot tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from making import make_model, make_rows

from alignlab.config.arguments import PreferenceConfig
from alignlab.scoring import forward as scoring
from alignlab.training.trainer import PreferenceTrainer


@pytest.mark.parametrize("loss", ["dpo", "tdpo", "wpo", "kto"])
def test_chunked_head_in_the_trainer(
    loss: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the chunked head for every batch, the losses of 5 steps are those of whole logits within 1e-5."""
    found = {}
    for chunked in (True, False):
        monkeypatch.setattr("alignlab.scoring.forward.worthwhile", lambda *_, always=chunked, **__: always)
        args = PreferenceConfig(
            output_dir=str(tmp_path),
            score_cache_dir=str(tmp_path / str(chunked)),
            max_steps=5,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        run = PreferenceTrainer(make_model(), args, loss, make_rows(16), None, tokenizer)
        counted = mock.Mock(side_effect=scoring.token_logps)
        monkeypatch.setattr("alignlab.scoring.forward.token_logps", counted)
        run.train()
        monkeypatch.undo()
        assert counted.called is not chunked, "the path that was asked for ran"
        found[chunked] = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert found[True] == pytest.approx(found[False], abs=1e-5)
