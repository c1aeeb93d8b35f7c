"""Adapter folders: they stand where a model does, on the base that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from making import make_model
from peft import LoraConfig, get_peft_model

from alignlab.config import holds_adapter
from alignlab.models import add_adapter, base_path, peft_options


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


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"target_modules": "("}, "error: missing \\), unterminated subpattern at position 0|PatternError"),
        ({"target_modules": ["nope"]}, "[A-Za-z]+: Target modules .*nope.* not found in the base model"),
        ({"trainable_token_indices": [9999]}, "IndexError: index 9999 is out of bounds"),
    ],
)
def test_what_peft_trips_over_is_an_error_of_the_config(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=rf"^peft: the adapter cannot be put on the model: ({found})"):
        add_adapter(make_model(), peft_options(options))
