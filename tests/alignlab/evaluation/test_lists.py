"""Held-out lists: each completion scored once, their figures by hand, and `alignlab eval` on a file of lists."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_tokenizer
from making_lists import make_lists

from alignlab.cli import main
from alignlab.data import DataOptions, prepare, sequence
from alignlab.evaluation import log_likelihoods
from alignlab.evaluation.lists import ListRow, list_figures, score_lists
from alignlab.losses import Listed, LossOutput, Scored
from alignlab.metrics import formulas
from alignlab.training.list_metrics import orders


def test_every_completion_is_scored_as_a_plain_forward_does(policy: Any, other: Any, tokenizer: Any) -> None:
    """Lists of 4, 2 and 3, in batches with holes and without, padded or packed."""
    lists = make_lists(5, groups=("a",))
    data = prepare(lists, tokenizer, DataOptions(kind="lists"), progress=False).dataset
    rows = score_lists(policy, data, 0, other, batch_size=2)
    assert [len(row.logps) for row in rows] == [4, 2, 3, 4, 2]
    for row, tokenised in zip(rows, data.with_format("numpy"), strict=True):
        sequences = [sequence(tokenised, "completions", place) for place in range(len(row.logps))]
        assert row.logps == pytest.approx(log_likelihoods(policy, sequences, 0).tolist(), abs=1e-3)
        assert row.ref_logps == pytest.approx(log_likelihoods(other, sequences, 0).tolist(), abs=1e-3)
        assert row.tokens == [int(one.mask.sum()) for one in sequences]
        assert (row.group, row.scores) == ("a", lists[row.row]["scores"])
    packed = score_lists(policy, data, 0, other, batch_size=5, mode="rows")
    for one, two in zip(rows, packed, strict=True):
        assert one.logps == pytest.approx(two.logps, abs=1e-3)


def test_the_ends_of_a_list_are_a_pair() -> None:
    row = ListRow(
        3, "x:4", None, [1.0, 5.0, 5.0, 0.0], [-1.0, -2.0, -3.0, -4.0], [1, 2, 3, 4], [-9.0, -8.0, -7.0, -6.0]
    )
    pair = row.ends()
    assert (pair.chosen_logp, pair.rejected_logp, pair.chosen_tokens, pair.rejected_tokens) == (-2.0, -4.0, 2, 4)
    assert (pair.ref_chosen_logp, pair.ref_rejected_logp) == (-8.0, -6.0)
    assert row.rewards(0.5) == [4.0, 3.0, 2.0, 1.0]


def test_figures_by_hand() -> None:
    """With the reference the rewards -3, 3 are wrong, log p alone is right: 0, 1 beside 1, 0."""
    row = ListRow(0, "x", None, [1.0, 0.0], [-1.0, -3.0], [1, 30], [-4.0, 0.0])
    found = list_figures([row], 0.1)
    assert found["ranking"]["accuracy"] == found["ranking"]["top1"] == 1.0
    wrong = ListRow(0, "x", None, [1.0, 0.0], [-4.0, -3.0], [1, 30], [-1.0, -3.0])
    found = list_figures([row, wrong], 0.1)
    assert (found["ranking"]["accuracy"], found["per_token_ranking"]["top1"]) == (0.5, 0.0)
    assert found["likelihood_ranking"]["ndcg"] == pytest.approx((1 + 1 / math.log2(3)) / 2)


def test_evaluation_and_training_measure_the_same() -> None:
    """The formula on rows, and the one on padded tensors, over lists with ties of rewards and of scores."""
    torch.manual_seed(0)
    rewards, scores = torch.randn(40, 5).mul(2).round(), torch.randn(40, 5).mul(2).round()
    scores[::3, 4], scores[:, 0] = math.nan, 9.0
    there = ~scores.isnan()
    batch = Listed(Scored(torch.zeros(40, 5, 1), there[..., None]), scores)
    found = orders(LossOutput(torch.zeros(40), rewards=rewards), batch)
    expected = formulas.list_ranking(
        [one[mask].tolist() for one, mask in zip(rewards, there, strict=True)],
        [one[mask].tolist() for one, mask in zip(scores, there, strict=True)],
    )
    for name, figure in (("accuracies", "accuracy"), ("top1", "top1"), ("ndcg", "ndcg")):
        assert found[name].mean().item() == pytest.approx(expected[figure], abs=1e-12)


def test_the_command_on_a_file_of_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model().save_pretrained(tmp_path / "policy")
    make_tokenizer().save_pretrained(tmp_path / "policy")
    rows = make_lists(6)
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--data", str(tmp_path / "lists.jsonl"), "--output", str(tmp_path / "out.json")]
    assert main(["eval", str(tmp_path / "policy"), *words, "--rows", str(tmp_path / "rows.jsonl")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["lists"]["ranking"]["lists"] == result["pairs"]["preference"]["rows"] == 6
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(one["kind"], len(one["logps"])) for one in written] == [("list", n) for n in (4, 2, 3, 4, 2, 3)]
    assert [one["scores"] for one in written] == [row["scores"] for row in rows]
    shown = capsys.readouterr().out
    assert "held-out lists" in shown
    assert "the best and the worst of held-out lists" in shown
    assert "ranking/ndcg" in shown
