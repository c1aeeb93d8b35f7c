"""Lists through the real trainer: one step however it is laid out or cut, one run however it is interrupted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from making_lists import make_lists
from torch import Tensor

from alignlab import losses
from alignlab.config import PreferenceConfig
from alignlab.losses import Listed, LossOutput, Needs, Scored
from alignlab.training import PreferenceTrainer
from alignlab.training.list_metrics import orders
from alignlab.training.row_metrics import row_metrics

LISTED: dict[str, Any] = {"name": "plackett_luce", "beta": 0.5}


def trainer(tokenizer: Any, folder: Path, rows: Any, evaluation: Any = None, loss: Any = LISTED, **changes: Any) -> Any:
    """A trainer over a tiny model with settings that show differences: high learning rate, no warm-up."""
    args = {
        "output_dir": str(folder / "run"),
        "score_cache_dir": str(folder / "scores"),
        "max_steps": 4,
        "per_device_train_batch_size": 6,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        **changes,
    }
    return PreferenceTrainer(make_model(), PreferenceConfig(**args), loss, rows, evaluation, tokenizer)


def trajectory(run: Any, name: str = "loss") -> list[float]:
    run.train()
    return [entry[name] for entry in run.state.log_history if name in entry]


def weights(run: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


# ---- one step, one run ---------------------------------------------------------------------------------------------


def test_packed_equals_padded_and_a_step_is_the_same_however_it_is_cut(tokenizer: Any, tmp_path: Path) -> None:
    """Lists of 2, 3 and 4 completions: losses and weights of four steps within 1e-5, cached reference or live."""
    rows = make_lists(12, groups=("a", "b"))
    one = trainer(tokenizer, tmp_path, rows)
    assert one.layout == "flat"
    expected = trajectory(one)
    assert len({round(value, 3) for value in expected}) == 4, "the trajectory moves"
    others: dict[str, dict[str, Any]] = {
        "padded": {"layout": "padded"},
        "padded, accumulated": {"layout": "padded", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 6},
        "packed, accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        "live": {"reference": "live"},
    }
    for name, changes in others.items():
        other = trainer(tokenizer, tmp_path, rows, **changes)
        assert trajectory(other) == pytest.approx(expected, abs=1e-5), name
        torch.testing.assert_close(weights(other), weights(one), rtol=0, atol=1e-5, msg=name)


def test_resumed_equals_uninterrupted_bit_for_bit(tokenizer: Any, tmp_path: Path) -> None:
    """12 steps over more than one epoch, once through and once stopped at 6."""
    rows = make_lists(16)
    settings: dict[str, Any] = {"max_steps": 12, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 6, "lr_scheduler_type": "cosine"}
    whole = trainer(tokenizer, tmp_path / "whole", rows, **settings)
    expected = trajectory(whole)
    resumed = trainer(tokenizer, tmp_path / "resumed", rows, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-6"))
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == expected
    assert torch.equal(weights(resumed), weights(whole))


def test_lists_of_two_are_dpo_on_pairs(tokenizer: Any, tmp_path: Path) -> None:
    """A pair row is a list of two, whose Plackett-Luce loss is DPO's: the same run, and the same metrics."""
    rows = make_rows(12, groups=("a", "b"))
    pairs = trainer(tokenizer, tmp_path, rows, 4, {"name": "dpo", "beta": 0.5})
    expected = trajectory(pairs)
    lists = trainer(tokenizer, tmp_path, rows, 4)
    assert trajectory(lists) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(weights(lists), weights(pairs), rtol=0, atol=1e-5)
    found, wanted = lists.evaluate(), pairs.evaluate()
    shared = [name for name in wanted if "/" in name or name == "eval_loss"]
    assert {"eval_rewards/accuracies", "eval_group/a/margin", "eval_logps/rejected"} <= set(shared)
    for name in shared:
        assert found[name] == pytest.approx(wanted[name], abs=1e-5), name


BASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # each draws on another part of what a batch holds
    "tdpo": ({}, {"reference": "live"}),
    "tdpo, cached": ({"name": "tdpo"}, {"reference": "cached"}),
    "orpo": ({"nll_scope": "full", "nll_reduction": "example"}, {}),
    "wpo": ({}, {}),
    "modpo": ({}, {}),
    "odpo": ({}, {}),
}


@pytest.mark.parametrize("name", BASES)
def test_a_loss_of_pairs_over_lists_of_two_is_itself(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """Its KL, the prompt's scores, second moments, rewards and scores of rows come to the right completions."""
    options, changes = BASES[name]
    base = {"name": name} | options
    rows: list[dict[str, Any]] = make_rows(12)
    for index, row in enumerate(rows):
        row |= {"score_chosen": 0.5 + index % 5 / 10, "score_rejected": 0.4 - index % 3 / 10}
        row |= {"rewards_chosen": [math.sin(index)], "rewards_rejected": [math.cos(index)]}
    pairs = trainer(tokenizer, tmp_path / "pairs", rows, loss=base, max_steps=2, **changes)
    lists = trainer(
        tokenizer, tmp_path / "lists", rows, loss={"name": "over_pairs", "base": base}, max_steps=2, **changes
    )
    assert trajectory(lists) == pytest.approx(trajectory(pairs), abs=1e-5)
    torch.testing.assert_close(weights(lists), weights(pairs), rtol=0, atol=1e-5)


def test_a_way_to_pair_lists_that_is_not_used_is_said(tokenizer: Any, tmp_path: Path, caplog: Any) -> None:
    trainer(tokenizer, tmp_path, make_lists(3), lists_as="all", reference="live")
    assert "lists_as: all says how losses of pairs read lists; this loss takes them whole" in caplog.text


def test_scores_cached_for_pairs_serve_lists_and_back(tokenizer: Any, tmp_path: Path) -> None:
    """All pairs of a list name every completion of it: once either is scored, nothing is left to score."""
    rows = make_lists(6, sizes=(3, 2))
    forwards = {}
    for folder, order in (("one", ("pairs", "lists")), ("other", ("lists", "pairs"))):
        for kind in order:
            loss = LISTED if kind == "lists" else {"name": "dpo"}
            run = trainer(tokenizer, tmp_path / folder, rows, loss=loss, lists_as="all")
            forwards[folder, kind] = run.frozen["reference"].forwards
    assert forwards == {("one", "pairs"): 15, ("one", "lists"): 0, ("other", "lists"): 15, ("other", "pairs"): 0}


def test_a_batch_that_is_evaluated_otherwise_has_the_same_metrics(tokenizer: Any, tmp_path: Path) -> None:
    """Batches of one list have no holes, those of seven have; the mean over lists is the same."""
    rows = make_lists(14, groups=("a", "b"))
    found = []
    for size, layout in ((1, "packed"), (7, "padded"), (3, "packed")):
        run = trainer(tokenizer, tmp_path, rows, rows[:7], layout=layout, per_device_eval_batch_size=size)
        run.train()
        found.append({name: value for name, value in run.evaluate().items() if "/" in name or name == "eval_loss"})
    assert {"eval_rewards/top1", "eval_rewards/ndcg", "eval_group/b/accuracy"} <= found[0].keys()
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-5)


def test_the_guard_names_the_list_that_differs(tokenizer: Any, tmp_path: Path) -> None:
    rows = make_lists(6)
    run = trainer(tokenizer, tmp_path, rows, per_device_train_batch_size=6)
    with torch.no_grad():  # after the reference was scored
        run.model.model.layers[0].mlp.down_proj.weight.mul_(3)
    with pytest.raises(ValueError, match=r"policy and reference differ by up to .* nats a token .* of 6 rows: row \d"):
        run.train()


class Spread(losses.Loss):
    """The variance of mean log-probabilities over a list: NaN in value or gradient wherever holes are touched."""

    needs = Needs(data="lists")

    def forward(self, batch: Any, totals: Any = None) -> LossOutput:
        means, there = batch.completions.mean_logps, batch.present
        count = there.sum(-1, keepdim=True)
        kept = torch.where(there, means, torch.zeros_like(means))
        centre = kept.sum(-1, keepdim=True) / count
        loss = torch.where(there, (means - centre) ** 2, torch.zeros_like(means)).sum(-1)
        return LossOutput(loss, rewards=means.detach())


def test_holes_leave_no_nan_in_a_loss_without_reference(tokenizer: Any, tmp_path: Path) -> None:
    rows = make_lists(9, sizes=(5, 2, 3))
    found = {
        layout: trainer(tokenizer, tmp_path, rows, loss=Spread(), layout=layout, per_device_train_batch_size=9)
        for layout in ("packed", "padded")
    }
    packed, padded = (trajectory(run) for run in found.values())
    assert all(map(math.isfinite, packed))
    assert packed == pytest.approx(padded, abs=1e-5)
    assert bool(weights(found["packed"]).isfinite().all())


# ---- metrics by hand -----------------------------------------------------------------------------------------------


def listed(scores: list[list[float]], **more: Any) -> Listed:
    """Lists whose completions have one token of log-probability -1; NaN scores are holes."""
    values = torch.tensor(scores)
    mask = ~values.isnan()[..., None]
    return Listed(Scored(torch.full(mask.shape, -1.0).masked_fill(~mask, math.nan), mask), values, **more)


def test_metrics_of_a_list_by_hand() -> None:
    """Scores 3, 1, 2 and a hole; rewards order them 3 > 2 > 1 but for one swap: 0.5, 0.2, 0.9.

    Of the pairs (3, 1), (3, 2), (2, 1) the first and the last are right. The best by reward is the 2. Gains 2, 0, 1 at
    ranks 2, 3, 1: (2 / log2(3) + 1) / (2 + 1 / log2(3)).
    """
    batch = listed([[3.0, 1.0, 2.0, math.nan]])
    out = LossOutput(torch.zeros(1), rewards=torch.tensor([[0.5, 0.2, 0.9, math.nan]]))
    found = orders(out, batch)
    assert found["accuracies"].tolist() == pytest.approx([2 / 3])
    assert found["top1"].tolist() == [0.0]
    log3 = math.log2(3)
    assert found["ndcg"].tolist() == pytest.approx([(2 / log3 + 1) / (2 + 1 / log3)])
    metrics = {name: total.item() / count.item() for name, (total, count) in row_metrics(out, batch, ()).items()}
    assert metrics["rewards/chosen"] == pytest.approx(0.5)
    assert metrics["rewards/margins"] == pytest.approx(0.3)
    assert (metrics["logps/chosen"], metrics["lengths/rejected"]) == (-1.0, 1.0)


def test_where_all_rewards_are_equal_no_order_is_taken_from_the_file() -> None:
    """At step 0: nothing is ordered, and NDCG is that of a random order: gains 1, 0, 0 with the mean discount."""
    batch = listed([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = orders(LossOutput(torch.zeros(2), rewards=torch.zeros(2, 3)), batch)
    mean = (1 + 1 / math.log2(3) + 1 / 2) / 3
    assert found["accuracies"].tolist() == found["top1"].tolist() == [0.0, 0.0]
    assert found["ndcg"].tolist() == pytest.approx([mean, mean])


def test_ties_of_scores_count_for_nobody_and_the_ends_are_their_means() -> None:
    """Two best of equal score, with rewards 1 and 3, over one with 2: one of two pairs right, chosen is worth 2."""
    batch = listed([[5.0, 5.0, 4.0]], group=torch.tensor([0]))
    out = LossOutput(torch.zeros(1), rewards=torch.tensor([[1.0, 3.0, 2.0]]))
    assert {name: value.item() for name, value in orders(out, batch).items() if name != "ndcg"} == {
        "accuracies": 0.5,
        "top1": 1.0,
    }
    metrics = {name: total.item() / count.item() for name, (total, count) in row_metrics(out, batch, ("g",)).items()}
    assert (metrics["rewards/chosen"], metrics["rewards/margins"], metrics["group/g/accuracy"]) == (2.0, 0.0, 0.5)


def test_order_and_holes_of_a_list_change_no_metric() -> None:
    torch.manual_seed(0)
    scores, rewards = torch.randn(5, 6).round(), torch.randn(5, 6).round()
    scores[2, 3:], scores[4, 2] = math.nan, math.nan
    order = torch.randperm(6)
    one = orders(LossOutput(torch.zeros(5), rewards=rewards), listed(scores.tolist()))
    other = orders(LossOutput(torch.zeros(5), rewards=rewards[:, order]), listed(scores[:, order].tolist()))
    alone = orders(LossOutput(torch.zeros(1), rewards=rewards[2:3, :3]), listed(scores[2:3, :3].tolist()))
    for name, values in one.items():
        assert values.tolist() == pytest.approx(other[name].tolist(), abs=1e-12)
        assert values[2].item() == pytest.approx(alone[name].item(), abs=1e-12)
