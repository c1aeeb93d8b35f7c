"""Adapter folders: they stand where a model does, on the base that they name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from alignlab.config import ModelOptions, holds_adapter, load_config
from alignlab.models import add_adapter, base_path, load_model, merge_adapter, peft_options


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


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]])
def test_merged_tied_embeddings_are_what_was_trained(targets: list[str], tokenizer: Any, tmp_path: Path) -> None:
    """Merged into the weight that they share, an adapter on one of them changed the other, too."""
    model = make_model(tie_word_embeddings=True)
    adapted = add_adapter(model, peft_options({"r": 4, "target_modules": targets}))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        trained = adapted.eval()(input_ids=ids).logits
        merge_adapter(adapted, tmp_path, tokenizer)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, trained, rtol=0, atol=1e-5)


def test_a_module_to_save_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^peft\.modules_to_save: the model has no module 'lm_heads', and PEFT would"):
        add_adapter(make_model(), peft_options({"r": 4, "modules_to_save": ["lm_head", "lm_heads"]}))


def test_an_adapter_on_another_base_names_that_one_from_then_on(tmp_path: Path, caplog: Any) -> None:
    """It went on naming the first one, so that a trained run was loaded on weights that it never saw."""
    for seed, name in enumerate(("first", "second")):
        make_model(seed).save_pretrained(tmp_path / name)
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    add_adapter(load_model(ModelOptions(first)), peft_options({"r": 4})).save_pretrained(tmp_path / "adapter")
    with caplog.at_level(logging.WARNING, "alignlab.models"):
        assert load_model(ModelOptions(first, adapter=str(tmp_path / "adapter"))) is not None
        assert caplog.messages == []
        found = load_model(ModelOptions(second, adapter=str(tmp_path / "adapter")))
    assert caplog.messages == [
        f"model.adapter: {tmp_path / 'adapter'} was made on {first}, and stands on {second} from here on"
    ]
    found.save_pretrained(tmp_path / "again")
    assert base_path(str(tmp_path / "again")) == second


def test_an_adapter_beside_another_in_the_place_of_the_base_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}", encoding="utf-8")
    model = {"name_or_path": str(tmp_path / "one"), "adapter": str(tmp_path / "two")}
    with pytest.raises(ValueError, match=r"^model\.adapter: .*one \(model\.name_or_path\) holds an adapter too, which"):
        load_config({"loss": {"name": "dpo"}, "model": model, "data": {"train": "pairs.jsonl"}})
