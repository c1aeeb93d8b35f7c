"""TR-DPO: the reference follows the policy by the numbers, in full models and adapters, through a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from peft import LoraConfig
from transformers import TrainerCallback

from alignlab.config.arguments import PreferenceConfig
from alignlab.config.run import load_config
from alignlab.reference.frozen import OtherAdapter
from alignlab.reference.separate import SeparateModel
from alignlab.reference.sync import REFERENCE_STATE, ReferenceSync
from alignlab.training.trainer import PreferenceTrainer

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
KINDS = {"full": None, "lora": LoraConfig(**LORA), "pissa": LoraConfig(**LORA, init_lora_weights="pissa")}


def trainer(tokenizer: Any, folder: Path, kind: str = "full", loss: Any = "dpo", **changes: Any) -> PreferenceTrainer:
    """A trainer with a moving reference."""
    own = {name: changes.pop(name) for name in ("model", "ref_model", "peft_config") if name in changes}
    args = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        **changes,
    }
    options = {"model": make_model(), "peft_config": KINDS[kind], **own}
    config = PreferenceConfig(**args)
    return PreferenceTrainer(args=config, loss=loss, train_dataset=make_rows(16), processing_class=tokenizer, **options)


def sync_of(run: PreferenceTrainer) -> ReferenceSync:
    assert run._sync is not None
    return run._sync


class Record(TrainerCallback):  # type: ignore[misc]
    """Keeps copies of policy and reference after every step."""

    def __init__(self, sync: ReferenceSync) -> None:
        self.sync = sync
        self.policy = [self.copy(sync.policy_weights())]
        self.reference = [self.copy(sync.reference_weights())]

    def copy(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in weights.items()}

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.policy.append(self.copy(self.sync.policy_weights()))
        self.reference.append(self.copy(self.sync.reference_weights()))


def recorded(run: PreferenceTrainer) -> Record:
    record = Record(sync_of(run))
    run.add_callback(record)
    run.train()
    return record


# ---- the mixture ---------------------------------------------------------------------------------------------------


def filled(weights: dict[str, torch.Tensor], value: float) -> None:
    for weight in weights.values():
        weight.data.fill_(value)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_mixture_by_hand(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """Policy 1, reference 0, alpha 0.6: 0.6; policy 2: 0.6 * 2 + 0.4 * 0.6 = 1.44. Hard: 2."""
    sync = sync_of(trainer(tokenizer, tmp_path, kind))
    filled(sync.policy_weights(), 1.0)
    filled(sync.reference_weights(), 0.0)
    for policy, alpha, expected in ((1.0, 0.6, 0.6), (2.0, 0.6, 1.44), (2.0, 1.0, 2.0)):
        filled(sync.policy_weights(), policy)
        sync.alpha = alpha
        sync.update()
        for name, weight in sync.reference_weights().items():
            torch.testing.assert_close(weight.detach(), torch.full_like(weight, expected), rtol=0, atol=1e-6, msg=name)
        assert all(bool((weight == policy).all()) for weight in sync.policy_weights().values()), "the policy stays"


@pytest.mark.parametrize("kind", KINDS)
def test_two_soft_updates_in_a_run(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """After two steps: 0.6 p2 + 0.4 (0.6 p1 + 0.4 p0)."""
    record = recorded(trainer(tokenizer, tmp_path, kind))
    (p0, p1, p2), (r0, r1, r2) = record.policy, record.reference
    for name in p0:
        assert torch.equal(r0[name], p0[name]), name
        one, two = 0.6 * p1[name] + 0.4 * p0[name], 0.6 * p2[name] + 0.24 * p1[name] + 0.16 * p0[name]
        torch.testing.assert_close(r1[name], one, rtol=0, atol=2.5e-7)  # two units in the last place of a weight of 1
        torch.testing.assert_close(r2[name], two, rtol=0, atol=2.5e-7)
    assert any((p2[name] - p1[name]).abs().max() > 1e-3 for name in p0), "the policy moves"


@pytest.mark.parametrize("loss", ["dpo", "tdpo"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_hard_updates_every_second_step(kind: str, loss: str, tokenizer: Any, tmp_path: Path) -> None:
    """alpha 1: after steps 2 and 4 the reference is the policy, so steps 3 and 5 start at log 2 as step 1 does."""
    run = trainer(tokenizer, tmp_path, kind, loss, ref_model_mixup_alpha=1.0, ref_model_sync_steps=2, max_steps=5)
    record = recorded(run)
    for step, like in ((1, 0), (2, 2), (3, 2), (4, 4), (5, 4)):
        assert all(torch.equal(record.reference[step][name], record.policy[like][name]) for name in record.policy[0])
    found = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert found[::2] == pytest.approx([math.log(2)] * 3, abs=1e-6)
    assert abs(found[1] - math.log(2)) > 1e-4


def test_adapter_goes_on_and_so_does_its_reference(tokenizer: Any, tmp_path: Path) -> None:
    """A policy that comes with an adapter: its reference is a copy of it, and the base model never changes."""
    first = trainer(tokenizer, tmp_path, "lora", sync_ref_model=False)
    first.train()
    base = {n: p.detach().clone() for n, p in first.model.named_parameters() if "lora" not in n}
    run = trainer(tokenizer, tmp_path, model=first.model, loss="kto")
    assert isinstance(run.frozen["reference"].model, OtherAdapter)
    record = recorded(run)
    assert all(torch.equal(record.reference[0][name], record.policy[0][name]) for name in record.policy[0])
    torch.testing.assert_close(
        record.reference[1], {n: 0.6 * record.policy[1][n] + 0.4 * p for n, p in record.policy[0].items()}
    )
    assert all(torch.equal(p, base[n]) for n, p in run.model.named_parameters() if n in base)


def test_pissa_leaves_the_policy_as_it_starts(tokenizer: Any, tmp_path: Path) -> None:
    """The copied adapter does not take its principal components out of the base once more."""
    run = trainer(tokenizer, tmp_path, "pissa")
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(run.model(ids).logits, make_model()(ids).logits, rtol=0, atol=1e-4)


def test_reference_given_as_a_model_follows_as_well(tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(tokenizer, tmp_path, ref_model=make_model(seed=1))
    record = recorded(run)
    for name, start in make_model(seed=1).named_parameters():
        expected = 0.6 * record.policy[1][name] + 0.4 * start
        torch.testing.assert_close(record.reference[1][name], expected, rtol=0, atol=1e-6)


# ---- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_resumed_equals_uninterrupted_bit_for_bit(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """12 steps, updates after 5 and 10, once through and once from the checkpoint of step 6: all weights are equal."""
    settings: dict[str, Any] = {"max_steps": 12, "ref_model_sync_steps": 5, "save_strategy": "steps", "save_steps": 6}
    whole = trainer(tokenizer, tmp_path / "whole", kind, **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-6"
    assert (checkpoint / REFERENCE_STATE).is_file()
    resumed = trainer(tokenizer, tmp_path / "resumed", kind, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    losses = [[e["loss"] for e in run.state.log_history if "loss" in e] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    for found, expected in (
        (sync_of(resumed).policy_weights(), sync_of(whole).policy_weights()),
        (sync_of(resumed).reference_weights(), sync_of(whole).reference_weights()),
    ):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    policy, reference = sync_of(whole).policy_weights(), sync_of(whole).reference_weights()
    assert any(not torch.equal(policy[name], reference[name]) for name in policy)


def test_checkpoint_without_a_reference_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    trainer(tokenizer, tmp_path, sync_ref_model=False, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match="cannot go on: sync_ref_model"):
        trainer(tokenizer, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_guard_still_holds(tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(tokenizer, tmp_path)
    with torch.no_grad():
        run.model.lm_head.weight.add_(0.05 * torch.randn_like(run.model.lm_head.weight))
    with pytest.raises(ValueError, match="policy and reference differ"):
        run.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "cached"}, "reference: cached keeps the scores of a reference that never changes"),
        ({"reference": "adapter_off"}, "reference: adapter_off makes the frozen base the reference"),
        ({"reference": "none"}, "reference: none leaves sync_ref_model nothing to move"),
        ({"ref_model_mixup_alpha": 0.0}, "ref_model_mixup_alpha: expected more than 0 and at most 1, found 0.0"),
        ({"ref_model_mixup_alpha": 1.5}, "ref_model_mixup_alpha: expected more than 0 and at most 1, found 1.5"),
        ({"ref_model_sync_steps": 0}, "ref_model_sync_steps: expected at least 1, found 0"),
    ],
)
def test_refused_before_anything_is_loaded(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = {"loss": {"name": "dpo"}, "model": {"name_or_path": "x"}, "data": {"train": "x"}, "sync_ref_model": True}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config({**config, **changes})
    assert str(error.value).startswith(message)
    assert load_config(config).training["ref_model_mixup_alpha"] == 0.6
    assert load_config(config).training["ref_model_sync_steps"] == 512


def test_refused_combinations(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sync_ref_model: this loss needs no reference"):
        trainer(tokenizer, tmp_path, loss="simpo")
    with pytest.raises(ValueError, match=r"cannot follow the policy: their weights are not the same in kind"):
        trainer(tokenizer, tmp_path, "lora", ref_model=make_model())
    with pytest.raises(ValueError, match=r"cannot follow the policy: .*for example model\.embed_tokens\.weight"):
        trainer(tokenizer, tmp_path, ref_model=make_model(vocab_size=299))
    run = trainer(tokenizer, tmp_path)
    assert isinstance(run.frozen["reference"].model, SeparateModel)
    assert not run.frozen["reference"].cached
