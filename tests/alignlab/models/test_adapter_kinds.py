"""Every start and every type of adapter that the installed PEFT has: exact, made from rows, or refused by name."""

from __future__ import annotations

import copy
import re
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from making import make_model
from peft import LoraConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM

from alignlab.config import ModelOptions
from alignlab.models import add_adapter, load_model, merge_adapter, save_as_plain
from alignlab.models.adapter_kinds import STARTS, TYPES, check_adapter, kind_of, type_of
from alignlab.models.quantised import prepare_quantised

DOCS = Path(__file__).parents[3] / "docs" / "adapters.md"
LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
LINEAR = {"target_modules": ["q_proj", "down_proj"]}
OPTIONS: dict[str, dict[str, Any]] = {  # where defaults do not fit a model of this size
    "C3A": {"block_size": 32},
    "FOURIERFT": {"n_frequency": 50},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {"oft_block_size": 4, "r": 0},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [5, 6]},
    "VBLORA": {"vector_length": 32, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 50},
}
VARIANTS: dict[str, list[dict[str, Any]]] = {  # further starts of types other than LoRA
    "HIRA": [{"init_weights": "gaussian"}],
    "LOKR": [{"init_weights": "lycoris"}],
    "MISS": [{"init_weights": False}, {"init_weights": "bat"}, {"init_weights": "mini", "mini_r": 4}],
    "PSOFT": [{"ab_svd_init": "pissa_init"}],
    "C3A": [{"init_weights": "gaussian"}, {"init_weights": "kaiming_uniform"}],
}
IDS = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(5))
IDS[:, 3:5] = torch.tensor([5, 6])


def exact_lora(name: str) -> Any:
    return LoraConfig(**LORA, init_lora_weights={"true": True, "false": False}.get(name, name.replace("_N", "_4")))


def exact_type(name: str, variant: dict[str, Any]) -> Any:
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name)]
    rank = {"r": 4} if "r" in cls.__dataclass_fields__ else {}
    with_block = {key: value for key, value in rank.items() if key not in OPTIONS.get(name, {})}
    return cls(task_type="CAUSAL_LM", **{**LINEAR, **with_block, **OPTIONS.get(name, {}), **variant})


EXACT = [pytest.param(exact_lora, (name,), id=name) for name, kind in STARTS.items() if kind.status == "exact"]
EXACT += [
    pytest.param(exact_type, (name, variant), id="-".join([name, *map(str, variant.values())]))
    for name, kind in TYPES.items()
    if kind.status == "exact"
    for variant in [{}, *VARIANTS.get(name, [])]
]


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("narrow")
    make_model(hidden_size=64, intermediate_size=128, num_hidden_layers=1).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bases(base_path: Path) -> dict[str, Any]:
    pytest.importorskip("bitsandbytes")
    return {
        "full": AutoModelForCausalLM.from_pretrained(base_path),
        "4-bit": load_model(ModelOptions(str(base_path), load_in_4bit=True)),
    }


@torch.no_grad()
def scores(model: Any) -> torch.Tensor:
    return torch.log_softmax(model.eval()(input_ids=IDS).logits.float(), dim=-1)


def trained(base: Any, config: Any) -> Any:
    """Returns a model whose adapter has moved from its start."""
    step = 0.5 if type_of(config) == "HIRA" else 0.05  # whose product is multiplied by the base weights
    torch.manual_seed(0)
    model = add_adapter(copy.deepcopy(base), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += step * torch.randn_like(weight)
    return model


def largest(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


@pytest.mark.parametrize("stored", ["full", "4-bit"])
@pytest.mark.parametrize(("make", "arguments"), EXACT)
def test_what_is_saved_and_merged_scores_as_in_memory(
    make: Any, arguments: tuple[Any, ...], stored: str, bases: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    """Saved, loaded under another seed, merged: within 1e-4 nats of the scores in memory, or refused before that."""
    config, base = make(*arguments), bases[stored]
    kind = kind_of(config)
    if stored == "4-bit" and not kind.quantised:
        with pytest.raises(ValueError, match="does not stand on a base that is stored in 4 or 8 bits; allowed there"):
            add_adapter(base, config)
        return
    before, model = scores(base), trained(base, config)
    expected = scores(model)
    assert largest(expected, before) > 1e-3, "nothing moved"
    with model.disable_adapter():
        assert (largest(scores(model), before) > 1e-3) == kind.rewrites
    model.save_pretrained(tmp_path / "adapter")
    save_as_plain(model, tmp_path / "adapter")
    torch.manual_seed(99)
    again = PeftModel.from_pretrained(prepare_quantised(copy.deepcopy(base)), tmp_path / "adapter")
    assert largest(scores(again), expected) < 1e-4
    merges = kind.merges is True or (kind.merges == "full" and stored == "full")
    if not merges:
        with pytest.raises(ValueError, match=r"model\.merge_adapter: PEFT cannot merge"):
            check_adapter(config, quantised=stored == "4-bit", merges=True)
        return
    merge_adapter(model, tmp_path / "merged", tokenizer)
    assert largest(scores(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected) < 1e-4


def test_every_start_of_the_installed_peft_is_in_the_table() -> None:
    """Those that the annotation of LoraConfig names, and those that the layers ask for beside it (lora_ga)."""
    hint = typing.get_type_hints(LoraConfig)["init_lora_weights"]
    named = {name for part in typing.get_args(hint) for name in typing.get_args(part) if isinstance(name, str)}
    layers = (Path(peft.__file__).parent / "tuners" / "lora" / "layer.py").read_text(encoding="utf-8")
    asked = set(re.findall(r"init_lora_weights(?:\.lower\(\))? == \"(\w+)\"", layers))
    found = {"pissa_niter_N" if "niter" in name else name for name in named | asked} | {"true", "false"}
    assert found == set(STARTS)


def test_every_type_of_the_installed_peft_is_in_the_table() -> None:
    assert {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} == {"LORA", *TYPES}


REFUSED = [(True, name) for name, kind in STARTS.items() if kind.status == "refused"]
REFUSED += [(False, name) for name, kind in TYPES.items() if kind.status == "refused"]


@pytest.mark.parametrize(("lora", "name"), REFUSED)
def test_the_others_are_refused_with_a_reason(lora: bool, name: str) -> None:
    config = SimpleNamespace(peft_type="LORA" if lora else name, init_lora_weights=name if lora else None)
    option = f"peft.init_lora_weights: {name!r}" if lora else f"peft.peft_type: {name}"
    reason = (STARTS if lora else TYPES)[name].note
    with pytest.raises(ValueError, match=re.escape(f"{option} cannot be used: {reason}; allowed: ")):
        check_adapter(config)


def test_what_a_later_peft_brings_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"peft\.peft_type: NEWER cannot be used: this type has not been tried here"):
        check_adapter(SimpleNamespace(peft_type="NEWER"))
    with pytest.raises(ValueError, match="'newer' cannot be used: this way to start has not been tried here"):
        check_adapter(SimpleNamespace(peft_type="LORA", init_lora_weights="newer"))


def rows_of_the_page() -> list[str]:
    """Returns the table of docs/adapters.md as the code has it."""
    lines = []
    for option, table in (("init_lora_weights", STARTS), ("peft_type", TYPES)):
        for name, kind in table.items():
            becomes = {"exact": "exact", "rows": "exact, made from training rows", "refused": "refused"}[kind.status]
            stored = "" if kind.status == "refused" else "yes" if kind.quantised else "no"
            merges = "" if kind.status == "refused" else {True: "yes", False: "no", "full": "full"}[kind.merges]
            lines.append(f"| `{option}: {name}` | {becomes} | {stored} | {merges} | {kind.note} |")
    return lines


def test_the_page_has_the_table() -> None:
    found = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [line for line in found if "init_lora_weights: " in line or "peft_type: " in line] == rows_of_the_page()
