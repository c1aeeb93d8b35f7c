"""Frozen scorers: which model is the reference, when its scores are made, and when they are made again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from peft import LoraConfig, PeftModel, get_peft_model

from alignlab.config.arguments import PreferenceConfig
from alignlab.data.collate import sequence, sequence_key
from alignlab.losses import Needs
from alignlab.reference.scorers import choose_mode
from alignlab.training.trainer import PreferenceTrainer

LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def trainer(tokenizer: Any, folder: Path, rows: Any, loss: Any = "dpo", model: Any = None, **changes: Any) -> Any:
    given = {name: changes.pop(name) for name in ("peft_config", "ref_model", "eval_dataset") if name in changes}
    settings = {
        "output_dir": str(folder / "run"),
        "score_cache_dir": str(folder / "cache"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }
    args = PreferenceConfig(**settings)
    return PreferenceTrainer(model or make_model(), args, loss, rows, processing_class=tokenizer, **given)


def forwards(run: PreferenceTrainer) -> int:
    return run.frozen["reference"].forwards


def random_adapter(model: Any, seed: int = 1) -> PeftModel:
    """An adapter that was trained before: its B matrices are not zero."""
    adapted = get_peft_model(model, LoraConfig(**LORA))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return adapted


def logps(run: PreferenceTrainer) -> torch.Tensor:
    """The reference's log-probabilities of the first training batch, as the loss is given them."""
    batch = next(iter(run.get_train_dataloader()))
    with torch.no_grad():
        scored: Any = run._step.scored(run.model, run._prepare_inputs(batch))
    return torch.cat([scored.chosen.sum_ref_logps, scored.rejected.sum_ref_logps])


# ---- the cache ---------------------------------------------------------------------------------------------------


def test_second_run_scores_nothing(tokenizer: Any, tmp_path: Path) -> None:
    """Beta, learning rate, output folder, row order, another loss: none of them touches the reference again."""
    rows = make_rows(20)
    assert forwards(trainer(tokenizer, tmp_path, rows)) == 40
    same: list[dict[str, Any]] = [
        {"loss": {"name": "dpo", "beta": 0.7}},
        {"learning_rate": 5e-5, "per_device_train_batch_size": 2},
        {"output_dir": str(tmp_path / "elsewhere")},
        {"rows": rows[::-1]},
        {"rows": rows[3:9]},
        {"loss": "ipo"},
    ]
    for change in same:
        assert forwards(trainer(tokenizer, tmp_path, change.pop("rows", rows), **change)) == 0, change


def test_new_rows_alone_are_scored(tokenizer: Any, tmp_path: Path) -> None:
    rows = make_rows(22)
    trainer(tokenizer, tmp_path, rows[:20])
    assert forwards(trainer(tokenizer, tmp_path, rows)) == 4


def test_new_rows_for_kto_are_scored_with_their_neighbours(tokenizer: Any, tmp_path: Path) -> None:
    """Two more pairs: their completions and mismatched ones, and mismatched ones that neighbours were given anew."""
    rows = make_rows(22)

    def distinct(run: Any) -> set[bytes]:
        data = run.train_dataset
        return {sequence_key(sequence(row, field)) for row in data for field in ("completion", "mismatched")}

    first = trainer(tokenizer, tmp_path, rows[:20], "kto")
    assert forwards(first) == len(distinct(first)) > 70
    second = trainer(tokenizer, tmp_path, rows, "kto")
    assert forwards(second) == len(distinct(second) - distinct(first)) <= 12
    assert forwards(trainer(tokenizer, tmp_path, rows, "dpo")) == 0


def test_what_changes_the_scores_scores_everything(tokenizer: Any, tmp_path: Path) -> None:
    """One bit of one weight, another compute dtype, another text before each prompt."""
    rows = make_rows(6)
    assert forwards(trainer(tokenizer, tmp_path, rows)) == 12
    flipped = make_model()
    bits = flipped.model.layers[1].mlp.up_proj.weight.data.view(torch.int32)
    bits[0, 0] ^= 1
    assert forwards(trainer(tokenizer, tmp_path, rows, model=flipped)) == 12
    assert forwards(trainer(tokenizer, tmp_path, rows, bf16=True)) == 12
    half = trainer(tokenizer, tmp_path, rows, model=make_model().bfloat16(), peft_config=LoraConfig(**LORA))
    assert forwards(half) == 12
    templated = [{**row, "prompt": f"Q: {row['prompt']}"} for row in rows]
    assert forwards(trainer(tokenizer, tmp_path, templated)) == 12


def test_cached_equals_live(tokenizer: Any, tmp_path: Path) -> None:
    """The same losses whether the reference is read from the cache or stands beside the policy."""
    rows, found = make_rows(16), {}
    for mode in ("cached", "live"):
        run = trainer(tokenizer, tmp_path, rows, reference=mode, max_steps=4, logging_steps=1)
        run.train()
        found[mode] = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert found["cached"] == pytest.approx(found["live"], abs=1e-6)
    assert found["cached"][0] == pytest.approx(math.log(2), abs=1e-6)


def test_complete_cache_puts_no_reference_into_memory(model_path: Path, tokenizer: Any, tmp_path: Path) -> None:
    """A reference given by path is fingerprinted from its files and, once scored, never loaded again."""
    rows = make_rows(6)
    first = trainer(tokenizer, tmp_path, rows, model=make_model(seed=3), ref_model=str(model_path))
    assert forwards(first) == 12
    assert first.frozen["reference"].model.model is None, "freed after scoring"
    second = trainer(tokenizer, tmp_path, rows, model=make_model(seed=4), ref_model=str(model_path))
    assert forwards(second) == 0
    second.frozen["reference"].model.loaded = None  # would fail if anything asked for the weights
    second.train()


def test_policy_that_is_trained_is_no_reference_any_more(tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(tokenizer, tmp_path, make_rows(8))
    run.train()
    with pytest.raises(ValueError, match="already trained"):
        run.evaluate(make_rows(3, seed=9))


# ---- which model is the reference --------------------------------------------------------------------------------


def test_new_adapter_is_switched_off_for_the_reference(tokenizer: Any, tmp_path: Path) -> None:
    """Its scores are those of the bare base model: a full fine-tuning run finds them in the cache."""
    rows = make_rows(8)
    run = trainer(tokenizer, tmp_path, rows, peft_config=LoraConfig(**LORA))
    assert forwards(run) == 16
    run.train()
    assert forwards(trainer(tokenizer, tmp_path, rows)) == 0
    base = dict(make_model().named_parameters())
    for name, value in run.model.base_model.model.named_parameters():
        if "lora" not in name:
            assert torch.equal(value, base[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize("mode", ["cached", "live"])
def test_trained_adapter_is_its_own_reference(mode: str, tokenizer: Any, tmp_path: Path) -> None:
    """A run that goes on from an SFT adapter is measured against that adapter, not against the bare base."""
    rows = make_rows(8)
    run = trainer(tokenizer, tmp_path, rows, model=random_adapter(make_model()), reference=mode, logging_steps=1)
    adapted = logps(run)
    bare = logps(trainer(tokenizer, tmp_path, rows))
    assert (adapted - bare).abs().max() > 0.01, "the adapter matters"
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    torch.testing.assert_close(logps(run), adapted, rtol=0, atol=1e-5, msg="the reference stayed as it was")


def test_saved_adapter_as_reference(tokenizer: Any, tmp_path: Path) -> None:
    """``ref_adapter`` names a saved adapter for the policy's base; the policy starts elsewhere."""
    rows = make_rows(8)
    random_adapter(make_model(), seed=1).save_pretrained(tmp_path / "adapter")
    expected = logps(trainer(tokenizer, tmp_path, rows, model=random_adapter(make_model(), seed=1)))
    for mode in ("cached", "live"):
        policy = random_adapter(make_model(), seed=2)
        run = trainer(tokenizer, tmp_path, rows, model=policy, reference=mode, ref_adapter=str(tmp_path / "adapter"))
        torch.testing.assert_close(logps(run), expected, rtol=0, atol=1e-5)
        run.train()
        torch.testing.assert_close(logps(run), expected, rtol=0, atol=1e-5)


def test_adapter_that_rewrites_the_base_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    """PiSSA: with the adapter off the model is not the reference; a separate reference works, and agrees."""
    pissa = LoraConfig(**LORA, init_lora_weights="pissa")
    with pytest.raises(ValueError, match=r"init_lora_weights.*pissa"):
        trainer(tokenizer, tmp_path, make_rows(8), peft_config=pissa)
    run = trainer(tokenizer, tmp_path, make_rows(8), peft_config=pissa, ref_model=make_model(), logging_steps=1)
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_mode_follows_needs() -> None:
    assert choose_mode("auto", Needs(), has_adapter=False) == "none"
    assert choose_mode("auto", Needs(ref_logps=True), has_adapter=True) == "cached"
    assert choose_mode("auto", Needs(kl=True), has_adapter=True) == "live"
    assert choose_mode("cached", Needs(kl=True), has_adapter=False) == "cached"
    with pytest.raises(ValueError, match="needs a reference"):
        choose_mode("none", Needs(ref_logps=True), has_adapter=False)
    with pytest.raises(ValueError, match="adapter_off"):
        choose_mode("adapter_off", Needs(ref_logps=True), has_adapter=False)


def test_tdpo_with_adapter_off_equals_a_live_copy(tokenizer: Any, tmp_path: Path) -> None:
    rows = make_rows(8)
    losses = []
    for settings in ({"reference": "adapter_off"}, {"ref_model": make_model()}):
        torch.manual_seed(0)
        run = trainer(
            tokenizer, tmp_path, rows, "tdpo", peft_config=LoraConfig(**LORA), logging_steps=1, max_steps=3, **settings
        )
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[0][2] < losses[0][0]


@pytest.mark.parametrize("settings", [{}, {"peft_config": LoraConfig(**LORA)}])
def test_tdpo_on_cached_hidden_states_equals_a_live_reference(settings: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Exact in float32; the second run puts nothing through the reference; bfloat16 states are close."""
    rows, found = make_rows(16), {}
    for mode, dtype in (("live", "float32"), ("cached", "float32"), ("cached", "bfloat16")):
        torch.manual_seed(0)
        changes = {"reference": mode, "reference_hidden_dtype": dtype, "max_steps": 4, "logging_steps": 1, **settings}
        run = trainer(tokenizer, tmp_path, rows, "tdpo", **changes)
        run.train()
        found[mode, dtype] = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert found["cached", "float32"] == pytest.approx(found["live", "float32"], abs=1e-5)
    assert found["cached", "bfloat16"] == pytest.approx(found["live", "float32"], abs=2e-2)
    assert found["cached", "bfloat16"] != found["cached", "float32"]
    again = trainer(tokenizer, tmp_path, rows, "tdpo", reference="cached", **settings)
    assert forwards(again) == 0
