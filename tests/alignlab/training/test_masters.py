"""Half-precision weights are trained only where something keeps what their steps round away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from peft import LoraConfig

from alignlab.config.arguments import PreferenceConfig
from alignlab.runtime.numerics import Numerics
from alignlab.training import masters
from alignlab.training.masters import check_masters
from alignlab.training.trainer import PreferenceTrainer

LORA = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def settings(folder: Path, **changes: Any) -> PreferenceConfig:
    quiet: dict[str, Any] = {"save_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    return PreferenceConfig(output_dir=str(folder), score_cache_dir=str(folder / "cache"), **quiet, **changes)


def train_half(folder: Path, tokenizer: Any, rate: float, steps: int, **changes: Any) -> float:
    """Trains a bfloat16 model; returns the share of its weights that are bit for bit as they were."""
    model, before = make_model().bfloat16(), make_model().bfloat16()
    args = settings(folder, learning_rate=rate, max_steps=steps, lr_scheduler_type="constant", **changes)
    PreferenceTrainer(model, args, "sft", make_rows(16), processing_class=tokenizer).train()
    pairs = list(zip(model.parameters(), before.parameters(), strict=True))
    same = sum(int((one == other).sum()) for one, other in pairs)
    return float(same / sum(one.numel() for one, _ in pairs))


def test_full_weights_in_bfloat16_are_refused_with_the_ways_out(tmp_path: Path, tokenizer: Any) -> None:
    """Before anything is scored, so before the hours that it would take."""
    model = make_model().bfloat16()
    with pytest.raises(
        ValueError, match=r"model\.dtype: 21 trained weights are bfloat16 \(first model\.embed"
    ) as found:
        PreferenceTrainer(model, settings(tmp_path), "dpo", make_rows(4), processing_class=tokenizer)
    for way in (
        "model.dtype: float32 with bf16: true",
        "peft: {r: 16}",
        "deepspeed: zero2.json",
        "optim: stable_adamw",
    ):
        assert way in str(found.value)
    assert not (tmp_path / "cache").exists()


def test_the_fault_that_is_refused(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the refusal more than nine weights of ten never move, though every one of them has a gradient."""
    monkeypatch.setattr("alignlab.training.trainer.check_masters", lambda *_, **__: None)
    assert train_half(tmp_path, tokenizer, 1e-6, 5) > 0.9


def test_adapters_engines_with_masters_and_optimisers_of_ones_own_pass(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """PEFT makes a new adapter float32 on a half-precision base; evaluation alone steps nothing."""
    args, rows = settings(tmp_path), make_rows(4)
    half = make_model().bfloat16()
    PreferenceTrainer(half, args, "dpo", rows, processing_class=tokenizer, peft_config=LoraConfig(**LORA))
    PreferenceTrainer(make_model().bfloat16(), args, "sft", None, rows, processing_class=tokenizer).evaluate()
    model = make_model().bfloat16()
    check_masters(model, args, Numerics("deepspeed", torch.bfloat16, stays=True), own_optimiser=False)
    check_masters(model, args, Numerics(), own_optimiser=True)
    assert "21 trained weights are bfloat16" in caplog.text


def test_copies_of_a_half_precision_base_are_named_by_their_key(tmp_path: Path, tokenizer: Any) -> None:
    """The adapter is float32, but what modules_to_save copies is as the base is: the way out is the base's dtype."""
    config = LoraConfig(**LORA, modules_to_save=["lm_head"])
    with pytest.raises(
        ValueError,
        match=r"^peft.modules_to_save: 1 trained weights are bfloat16 \(first .*modules_to_save.default.weight\)"
        r", as the base is, .* Set model.dtype: float32 and bf16: true",
    ):
        PreferenceTrainer(
            make_model().bfloat16(), settings(tmp_path), "dpo", make_rows(4), None, tokenizer, peft_config=config
        )
    PreferenceTrainer(make_model(), settings(tmp_path), "dpo", make_rows(4), None, tokenizer, peft_config=config)


def test_weights_of_two_dtypes_say_what_does_not_meet(tmp_path: Path, tokenizer: Any) -> None:
    """A frozen trunk in bfloat16 under a float32 head: refused in plain arithmetic, trained under autocast."""
    model = make_model().bfloat16().requires_grad_(False)
    model.lm_head.float().requires_grad_(True)
    with pytest.raises(
        ValueError,
        match=r"^model.dtype: there are weights in bfloat16 \(model.embed_tokens.weight\) and float32 "
        r"\(lm_head.weight\), which cannot be multiplied with each other; allowed are one dtype for all, or autocast "
        r"\(bf16: true\)",
    ):
        PreferenceTrainer(model, settings(tmp_path), "dpo", make_rows(4), None, tokenizer).train()
    start = model.lm_head.weight.detach().clone()
    PreferenceTrainer(model, settings(tmp_path, bf16=True, max_steps=2), "dpo", make_rows(4), None, tokenizer).train()
    assert not torch.equal(start, model.lm_head.weight)


@pytest.mark.parametrize(
    ("changes", "dtype", "installed", "message"),
    [
        ({"optim": "stable_adamw"}, "bfloat16", False, "optim: stable_adamw needs the package torch-optimi"),
        ({"optim": "adamw_torch_8bit"}, "bfloat16", True, "expected bf16_stochastic_round=True, found None"),
        (
            {"optim": "adamw_torch_8bit", "optim_args": "bf16_stochastic_round=True"},
            "float16",
            True,
            "optim: adamw_torch_8bit rounds stochastically in bfloat16 only",
        ),
        ({"optim": "adamw_bnb_8bit"}, "bfloat16", True, "model.dtype: 21 trained weights are bfloat16"),
    ],
)
def test_an_optimiser_asked_for_by_name_must_be_there_and_be_told(
    changes: Any, dtype: str, installed: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masters, "find_spec", lambda _: object() if installed else None)
    model = make_model().to(getattr(torch, dtype))
    with pytest.raises(ValueError, match=message):
        check_masters(model, settings(tmp_path, **changes), Numerics(), own_optimiser=False)


@pytest.mark.parametrize(
    ("package", "changes"),
    [
        ("optimi", {"optim": "stable_adamw"}),
        ("torchao", {"optim": "adamw_torch_8bit", "optim_args": "bf16_stochastic_round=True"}),
    ],
)
def test_an_optimiser_asked_for_by_name_moves_them(package: str, changes: Any, tmp_path: Path, tokenizer: Any) -> None:
    """Steps of a thousandth of a weight's spacing add up: by Kahan sums in each weight, by rounding on the average.

    Forty steps of 1e-5 are 4e-4; weights are about 0.02, where bfloat16 has a spacing of 6e-5 to 1.2e-4.
    """
    pytest.importorskip(package)
    assert train_half(tmp_path, tokenizer, 1e-5, 40, **changes) < 0.5
