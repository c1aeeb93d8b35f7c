"""Adapter folders: they stand where a model does, on the base that they name."""

from __future__ import annotations

from pathlib import Path

from making import make_model
from peft import LoraConfig, get_peft_model

from alignlab.config import holds_adapter
from alignlab.models import base_path


def test_a_folder_with_an_adapter_names_its_base(model_path: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(model_path)
    adapted.save_pretrained(tmp_path)
    assert holds_adapter(tmp_path)
    assert base_path(str(tmp_path)) == str(model_path)


def test_a_model_is_its_own_base(model_path: Path) -> None:
    assert not holds_adapter(model_path)
    assert base_path(str(model_path)) == str(model_path)
    assert base_path("some-hub/id") == "some-hub/id"
