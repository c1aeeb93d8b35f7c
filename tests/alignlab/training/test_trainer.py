"""The trainer: the same step however it is cut, the same run however it is interrupted, the same metrics anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from torch.utils.data import DataLoader

from alignlab import losses
from alignlab.config import PreferenceConfig
from alignlab.data import StepCut, StepSampler
from alignlab.training import PreferenceTrainer

GROUPS = ("a", "b", "c")
SEVEN: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "beta": 0.5},
    "ipo": {"name": "ipo"},
    "kto": {"name": "kto", "beta": 0.5},
    "orpo": {"name": "orpo", "nll_scope": "full", "nll_reduction": "token"},
    "tdpo": {"name": "tdpo", "beta": 0.5},
    "group_robust": {"name": "group_robust", "base": {"name": "dpo", "beta": 0.5}, "step_size": 0.5},
    "sft": {"name": "sft"},
}


def trainer(
    tokenizer: Any, folder: Path, loss: Any, rows: list[Any], evaluation: Any = None, cls: Any = None, **changes: Any
) -> PreferenceTrainer:
    """A trainer over a tiny model with settings that show differences: high learning rate, no warm-up."""
    args = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        **changes,
    }
    return (cls or PreferenceTrainer)(make_model(), PreferenceConfig(**args), loss, rows, evaluation, tokenizer)


def trajectory(run: PreferenceTrainer, name: str = "loss") -> list[float]:
    run.train()
    return [entry[name] for entry in run.state.log_history if name in entry]


def weights(run: PreferenceTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


class UnevenSampler(StepSampler):
    """Cuts each step of eight rows into micro-batches of 4, 2 and 2."""

    def __len__(self) -> int:
        return 3 * (self.rows // 8)

    def __iter__(self) -> Iterator[list[int]]:
        for step in super().__iter__():
            yield from (step[:4], step[4:6], step[6:])


class UnevenTrainer(PreferenceTrainer):
    def get_train_dataloader(self) -> DataLoader[Any]:
        sampler = UnevenSampler(len(self.train_dataset), StepCut(8), seed=self.args.seed)
        return self._loaders.over(self.train_dataset, sampler, training=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "kto", "group_robust", "orpo"])
def test_a_step_is_the_same_however_it_is_cut(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """8 rows == 8 x 1 == 4 + 2 + 2, losses and weights of every step, within 1e-5."""
    rows = make_rows(16 if name == "kto" else 32, groups=GROUPS)
    one = trainer(tokenizer, tmp_path, SEVEN[name], rows)
    expected = trajectory(one)
    assert len(set(expected)) > 1, "the trajectory moves"
    cuts = {
        "8 x 1": trainer(
            tokenizer, tmp_path, SEVEN[name], rows, per_device_train_batch_size=1, gradient_accumulation_steps=8
        ),
        "4 + 2 + 2": trainer(tokenizer, tmp_path, SEVEN[name], rows, cls=UnevenTrainer, gradient_accumulation_steps=3),
    }
    for cut, other in cuts.items():
        assert trajectory(other) == pytest.approx(expected, abs=1e-5), cut
        torch.testing.assert_close(weights(other), weights(one), rtol=0, atol=1e-5, msg=cut)


@pytest.mark.parametrize("name", ["dpo", "kto", "group_robust"])
def test_resumed_equals_uninterrupted_bit_for_bit(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """20 steps over more than one epoch, once through and once stopped at 10: weights and loss state are equal."""
    rows = make_rows(12 if name == "kto" else 24, groups=GROUPS)
    settings: dict[str, Any] = {"max_steps": 20, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 10, "lr_scheduler_type": "cosine"}
    whole = trainer(tokenizer, tmp_path / "whole", SEVEN[name], rows, **settings)
    expected = trajectory(whole)
    resumed = trainer(tokenizer, tmp_path / "resumed", SEVEN[name], rows, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == expected
    assert torch.equal(weights(resumed), weights(whole))
    for key, value in whole.loss.state_dict().items():
        assert torch.equal(resumed.loss.state_dict()[key], value), key
    if name == "group_robust":
        moved = whole.loss.state_dict()["log_weights"]
        assert moved.max() - moved.min() > 0.01, "the group weights that were compared did move"


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVEN)
def test_evaluation_does_not_depend_on_batch_size(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """13 rows in batches of 8, 3 and 1 give the same metrics: evaluation is one step over the set."""
    rows, held = make_rows(16, groups=GROUPS), make_rows(13, seed=5, groups=GROUPS)
    found = []
    for batch in (8, 3, 1):
        run = trainer(tokenizer, tmp_path, SEVEN[name], rows, held, per_device_eval_batch_size=batch, max_steps=2)
        run.train()
        metrics = run.evaluate()
        found.append({k: v for k, v in metrics.items() if "per_second" not in k and "runtime" not in k})
    assert found[1] == pytest.approx(found[0], abs=2e-5)
    assert found[2] == pytest.approx(found[0], abs=2e-5)


def test_metrics_are_those_of_the_rows(tokenizer: Any, tmp_path: Path) -> None:
    """Rewards, margins and accuracies of an evaluation equal beta times log-ratios taken from two plain forwards."""
    rows = make_rows(8)
    run = trainer(tokenizer, tmp_path, {"name": "dpo", "beta": 0.5}, rows, rows, max_steps=3)
    run.train()
    metrics = run.evaluate()

    def log_ratio(row: dict[str, Any], side: str) -> float:
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = [*tokenizer(row[side])["input_ids"], tokenizer.eos_token_id]
        total = []
        for model in (run.model, make_model()):
            with torch.no_grad():
                logps = torch.log_softmax(model(torch.tensor([prompt + completion])).logits[0].double(), -1)
            total.append(sum(logps[len(prompt) - 1 + t, token].item() for t, token in enumerate(completion)))
        return total[0] - total[1]

    chosen, rejected = ([log_ratio(row, side) for row in rows] for side in ("chosen", "rejected"))
    margins = [0.5 * (a - b) for a, b in zip(chosen, rejected, strict=True)]
    assert metrics["eval_rewards/chosen"] == pytest.approx(0.5 * sum(chosen) / 8, abs=1e-4)
    assert metrics["eval_rewards/margins"] == pytest.approx(sum(margins) / 8, abs=1e-4)
    assert metrics["eval_rewards/accuracies"] == sum(m > 0 for m in margins) / 8
    assert metrics["eval_loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 8, abs=1e-4)


def test_first_loss_is_log_two_and_the_guard_is_silent(tokenizer: Any, tmp_path: Path) -> None:
    """With the policy as its own reference the first DPO loss is log 2."""
    run = trainer(tokenizer, tmp_path, "dpo", make_rows(8), max_steps=1)
    assert trajectory(run)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_guard_names_rows_when_the_reference_is_not_the_policy(tokenizer: Any, tmp_path: Path) -> None:
    """Weights changed behind the trainer's back after the reference was scored stop the run before its first step."""
    run = trainer(tokenizer, tmp_path, "dpo", make_rows(8), max_steps=1)
    with torch.no_grad():
        run.model.lm_head.weight.add_(0.05 * torch.randn_like(run.model.lm_head.weight))
    before = weights(run).clone()
    with pytest.raises(ValueError, match=r"policy and reference differ by up to .* rows: row \d"):
        run.train()
    assert torch.equal(weights(run), before)
    run.args.allow_reference_mismatch = True
    run.train()


def test_nan_loss_stops_and_names_the_row(tokenizer: Any, tmp_path: Path) -> None:
    def broken(batch: losses.Pairs) -> torch.Tensor:
        loss = batch.chosen.sum_logps * 1.0
        return torch.where(torch.arange(len(loss)) == 0, loss * float("nan"), loss)

    run = trainer(tokenizer, tmp_path, broken, make_rows(8), max_steps=1)
    with pytest.raises(FloatingPointError, match="row"):
        run.train()


def test_weights_of_rows_scale_their_gradient(tokenizer: Any, tmp_path: Path) -> None:
    """Four rows at weight 2 and four at 0, over eight rows, are the plain mean of the four."""
    rows = make_rows(8)
    half = [{**row, "weight": 2.0 if index < 4 else 0.0} for index, row in enumerate(rows)]
    weighted = trainer(tokenizer, tmp_path, "dpo", half, max_steps=3)
    plain = trainer(tokenizer, tmp_path, "dpo", rows[:4], max_steps=3, per_device_train_batch_size=4)
    assert trajectory(weighted) == pytest.approx(trajectory(plain), abs=1e-5)
    torch.testing.assert_close(weights(weighted), weights(plain), rtol=0, atol=2e-5)


def test_several_evaluation_sets_have_names_of_their_own(tokenizer: Any, tmp_path: Path) -> None:
    sets = {"short": make_rows(3, seed=1), "long": make_rows(5, seed=2)}
    metrics = trainer(tokenizer, tmp_path, "dpo", make_rows(8), sets).evaluate()
    assert metrics["eval_short_loss"] == pytest.approx(math.log(2))
    assert metrics["eval_long_lengths/chosen"] != metrics["eval_short_lengths/chosen"]


def test_kto_is_measured_on_pairs(tokenizer: Any, tmp_path: Path) -> None:
    """A labelled loss evaluated on pairs reports the pairs' accuracy, equal to that computed pair by pair with DPO."""
    rows = make_rows(9)
    run = trainer(tokenizer, tmp_path, {"name": "kto", "beta": 0.5}, rows, rows, max_steps=4)
    run.train()
    metrics = run.evaluate()
    reference = trainer(tokenizer, tmp_path, {"name": "dpo", "beta": 0.5}, rows, rows)
    reference.model.load_state_dict(run.model.state_dict())
    expected = reference.evaluate()
    for name in ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected"):
        assert metrics[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], abs=1e-5), name


def test_custom_function_and_class_train(tokenizer: Any, tmp_path: Path) -> None:
    """DPO written as a function of the user's gives the zoo's trajectory."""

    def mine(batch: losses.Pairs, beta: float = 0.1) -> torch.Tensor:
        return -torch.nn.functional.logsigmoid(beta * (batch.chosen.log_ratios - batch.rejected.log_ratios))

    own = losses.from_function(mine, needs=losses.Needs(ref_logps=True), beta=0.5)
    rows = make_rows(16)
    expected = trajectory(trainer(tokenizer, tmp_path, SEVEN["dpo"], rows))
    assert trajectory(trainer(tokenizer, tmp_path, own, rows)) == pytest.approx(expected, abs=1e-6)


def test_a_new_adapter_starts_as_the_seed_says(tokenizer: Any, tmp_path: Path) -> None:
    """Whatever was drawn before: one seed, one adapter; another seed, another."""
    from peft import LoraConfig

    def start(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        args = PreferenceConfig(output_dir=str(tmp_path), seed=seed, disable_tqdm=True)
        run = PreferenceTrainer(make_model(), args, "dpo", make_rows(4), None, tokenizer, lora)
        return torch.cat([p.detach().flatten() for n, p in run.model.named_parameters() if "lora_A" in n])

    first = start(3)
    torch.manual_seed(99)
    assert torch.equal(start(3), first)
    assert not torch.equal(start(4), first)


def test_rows_in_the_order_of_the_data_and_their_padding_in_the_log(tokenizer: Any, tmp_path: Path) -> None:
    """Sequential order; padded rows of 2 * 4 sequences pad 1 - tokens / (8 * longest), packed ones nothing."""
    options = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential", "max_steps": 1}
    found = {}
    for layout in ("padded", "packed"):
        run = trainer(tokenizer, tmp_path, SEVEN["dpo"], make_rows(8), layout=layout, **options)
        assert [batch["row"].tolist() for batch in run.get_train_dataloader()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        found[layout] = trajectory(run, "padding")
        assert run.data.train is not None
        first = run.data.train.select(range(4))
        lengths = [len(row["prompt_ids"]) + len(row[f"{side}_ids"]) for row in first for side in ("chosen", "rejected")]
    assert found["padded"] == pytest.approx([1 - sum(lengths) / (8 * max(lengths))])
    assert found["packed"] == [0.0]


def test_supervised_training_leaves_the_rejected_completion_out(tokenizer: Any, tmp_path: Path) -> None:
    """Its tokens do not go through the model in training; losses equal those of the chosen completions as rows."""
    rows = make_rows(16)
    pairs = trainer(tokenizer, tmp_path, {"name": "sft"}, rows, evaluation=rows)
    batch = next(iter(pairs.get_train_dataloader()))
    assert batch["completions"]["fields"] == ["chosen"]
    assert pairs.data.train is not None
    chosen = pairs.data.train.select(batch["row"].tolist())
    expected = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in chosen)
    assert batch["completions"]["input_ids"].numel() == expected
    labelled = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows]
    alone = trainer(tokenizer, tmp_path, {"name": "sft", "data": "labelled"}, labelled)
    assert trajectory(pairs) == pytest.approx(trajectory(alone), abs=1e-6)
    assert not any("logps/rejected" in entry for entry in pairs.state.log_history)
    assert pairs.evaluate()["eval_lengths/rejected"] > 1
