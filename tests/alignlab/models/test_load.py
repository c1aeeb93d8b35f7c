"""What is said where a model or an adapter is not what the config takes it for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from alignlab.config import ModelOptions, load_config
from alignlab.models import adapter_config, load_model


def test_a_folder_that_holds_no_adapter_is_named_by_its_key(model_path: Path) -> None:
    values = {"loss": {"name": "dpo"}, "model": {"name_or_path": "m"}, "data": {"train": "rows.jsonl"}}
    with pytest.raises(ValueError, match=r"^model.adapter: .* holds no adapter_config.json: it is no saved adapter$"):
        load_config(values, ["--model.adapter", str(model_path)])


def test_an_adapter_that_is_nowhere_names_the_keys() -> None:
    expected = r"^the adapter of 'no/adapter' cannot be loaded: there .*\(model.adapter and ref_adapter take a folder"
    with pytest.raises(ValueError, match=expected):
        adapter_config("no/adapter")


def test_a_revision_of_a_folder_is_said_to_be_unused(model_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "alignlab"):
        load_model(ModelOptions(str(model_path)))
        assert caplog.messages == []
        load_model(ModelOptions(str(model_path), revision="v2"))
    assert caplog.messages == [f"model.revision: 'v2' is not used: {model_path} is a folder, which has no revisions"]
