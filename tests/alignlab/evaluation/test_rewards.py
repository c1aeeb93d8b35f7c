"""`alignlab eval` of a reward model: pairs by subset, rows of RewardBench 2, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from making import make_model, make_rows

from alignlab.cli import main
from alignlab.data import TextReader
from alignlab.evaluation.rewards import BenchRow, bench_figures, is_bench, reward_bench
from alignlab.judges.reward_model import RewardModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A reward model that says how it reads, as a run of ours saves it."""
    path = tmp_path_factory.mktemp("reward")
    make_model(3, outputs=1).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "reward_model.json").write_text(json.dumps({"outputs": 1, "reading": {"max_length": 64}}))
    return path


def evaluate(model: Path, rows: list[dict[str, Any]], folder: Path, *words: str) -> dict[str, Any]:
    data, out = folder / "rows.jsonl", folder / "out.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["eval", str(model), "--data", str(data), "--output", str(out), *words]) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_pairs_by_subset(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracies are those of the judge's rewards, over all rows and in each subset."""
    rows = [row | {"subset": ("chat", "code")[index % 2]} for index, row in enumerate(make_rows(10))]
    result = evaluate(model, rows, tmp_path, "--rows", str(tmp_path / "each.jsonl"))
    judge = RewardModel(str(model))
    texts = [(row["prompt"], row[name]) for row in rows for name in ("chosen", "rejected")]
    rewards = judge.rewards(texts)
    margins = [good - bad for good, bad in zip(rewards[::2], rewards[1::2], strict=True)]
    figures = result["pairs"]
    assert figures["preference"]["accuracy"] == sum(one > 0 for one in margins) / 10
    assert figures["calibration"]["margin"] == pytest.approx(sum(margins) / 10, abs=1e-5)
    assert figures["groups"]["code"]["accuracy"] == sum(one > 0 for one in margins[1::2]) / 5
    assert figures["length"].keys() >= {"chosen_longer", "pearson", "reward_pearson", "reward_slope"}
    assert "calibration/ece" in capsys.readouterr().out
    each = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert [one["chosen_reward"] for one in each] == pytest.approx(rewards[::2], abs=1e-5)
    assert each[1]["group"] == "code"


def test_rows_of_reward_bench_2(model: Path, tmp_path: Path) -> None:
    """Rewards of lists are those of single texts; the score is the mean of its subsets."""
    words = [row["chosen"].strip() for row in make_rows(12)]
    rows: list[dict[str, Any]] = [
        {
            "id": str(n),
            "prompt": "the red cat :",
            "chosen": words[n : n + 1],
            "rejected": words[n + 1 : n + 4],
            "num_correct": 1,
            "subset": "Math",
        }
        for n in range(4)
    ]
    both = {"prompt": "a dog :", "rejected": words[8:10], "subset": "Ties"}
    rows += [both | {"id": "ref:5", "chosen": words[:1]}, both | {"id": "tied:5", "chosen": words[1:4]}]
    result = evaluate(model, rows, tmp_path)["bench"]
    judge = RewardModel(str(model))
    firsts = []
    for row in rows[:4]:
        rewards = judge.rewards([(row["prompt"], one) for one in [*row["chosen"], *row["rejected"]]])
        firsts.append(float(rewards[0] == max(rewards)))
    assert result["subsets"]["Math"] == {"score": sum(firsts) / 4, "rows": 4}
    assert result["subsets"]["Ties"]["score"] == result["ties"]["score"]
    assert result["score"] == pytest.approx((sum(firsts) / 4 + result["ties"]["score"]) / 2)


def test_figures_of_reward_bench_2_by_hand() -> None:
    rows = [BenchRow(0, "f:1", "a", "Math", [1.0], [0.0, 1.0]), BenchRow(1, "f:2", "b", "Math", [2.0], [0.0, 1.0])]
    assert bench_figures(rows) == {"subsets": {"Math": {"score": 0.75, "rows": 2}}, "score": 0.75}
    with pytest.raises(ValueError, match=r"f:9: id of a row of Ties: expected ref:N or tied:N, found '17'"):
        bench_figures([BenchRow(0, "f:9", "17", "Ties", [1.0], [0.0])])


def test_rows_of_reward_bench_2_that_would_not_count_are_named() -> None:
    rows = [
        BenchRow(n, f"f:{n}", name, "Ties", [1.0, 2.0], [0.0]) for n, name in enumerate(["ref:1", "tied:1", "ref:1"])
    ]
    with pytest.raises(ValueError, match=r"f:2: two rows of Ties have the id 'ref:1'; one of them would not count"):
        bench_figures(rows)
    with pytest.raises(ValueError, match=r"f:7: a row of Math has one correct answer, found 2; several are for"):
        bench_figures([BenchRow(0, "f:7", "a", "Math", [1.0, 2.0], [0.0])])


def test_a_reward_that_is_no_number_scores_nothing(tokenizer: Any) -> None:
    """It lost every comparison as the right answer, and won every one as a wrong answer."""
    model: Any = make_model(3, outputs=1)
    model.score.weight.data[:] = math.nan
    row = {"prompt": "p", "chosen": ["a"], "rejected": ["b"], "subset": "Math"}
    with pytest.raises(ValueError, match=r"f:3: the reward of an answer is nan; no score can be made of that"):
        reward_bench(model, [("f:3", row)], TextReader(tokenizer, {"max_length": 64}), 0, "padded")


def test_what_a_row_of_reward_bench_2_is() -> None:
    row = {"prompt": "p", "chosen": ["a"], "rejected": ["b"], "subset": "Math"}
    assert is_bench(row)
    assert not is_bench(row | {"chosen": [{"role": "assistant", "content": "a"}]})
    assert not is_bench({name: value for name, value in row.items() if name != "subset"})


def test_refusals(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "p", "chosen": ["a"], "rejected": ["b"], "subset": "x", "num_correct": 2}))
    assert main(["eval", str(model), "--data", str(data)]) == 2
    assert "num_correct is 2, and chosen has 1 answers" in capsys.readouterr().err
    assert main(["eval", str(model), "--data", str(data), "--reference", str(model)]) == 2
    assert "is a reward model, which needs no reference" in capsys.readouterr().err
