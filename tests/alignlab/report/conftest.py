"""Run folders made by hand."""

import json

import pytest

from alignlab.config.parser import write_yaml


def _fake_run(folder, log, metrics=None, **config):
    """A run folder with nothing but a log."""
    folder.mkdir(parents=True)
    state = {"global_step": log[-1]["step"], "max_steps": log[-1]["step"], "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "config.yaml").write_text(write_yaml({"loss": {"name": "dpo"}, **config}))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def fake_run():
    return _fake_run
