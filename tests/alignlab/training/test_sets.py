"""The keys of a config that reach the rows: labels by default, the order of rewards, options of the chat template."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from making import make_rows
from making_lists import make_lists

from alignlab import losses
from alignlab.config import PreferenceConfig
from alignlab.training.sets import TrainingData


def data_of(loss: dict[str, Any], rows: list[Any], tokenizer: Any, folder: Path, **keys: Any) -> Any:
    args = PreferenceConfig(output_dir=str(folder), disable_tqdm=True, **keys)
    return TrainingData(losses.build(loss).needs, args, tokenizer, rows, None)


def test_default_label(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in make_rows(4)]
    with pytest.raises(ValueError, match="label"):
        data_of({"name": "kto"}, rows, tokenizer, tmp_path)
    found = data_of({"name": "kto"}, rows, tokenizer, tmp_path, default_label=True)
    assert list(found.train["label"]) == [True] * 4


def test_reward_names_order_the_objectives(tokenizer: Any, tmp_path: Path) -> None:
    loss = {"name": "modpo", "weights": [0.5, 0.25, 0.25]}
    rewards = {"rewards_chosen": {"short": 1.0, "kind": 2.0}, "rewards_rejected": {"short": 3.0, "kind": 4.0}}
    rows = [{**row, **rewards} for row in make_rows(2)]
    by_name = data_of(loss, rows, tokenizer, tmp_path)
    assert by_name.train[0]["rewards_chosen"] == [2.0, 1.0]
    assert by_name.facts.objectives == ("kind", "short")
    as_told = data_of(loss, rows, tokenizer, tmp_path, reward_names=["short", "kind"])
    assert as_told.train[0]["rewards_chosen"] == [1.0, 2.0]
    assert as_told.facts.objectives == ("short", "kind")


def test_ranges_of_what_the_loss_reads(tokenizer: Any, tmp_path: Path) -> None:
    """Over trained and held-out rows: scores 1 to 0.25 and -0.5 to 0.75, gaps 1.5 to -0.5; DPO reads none of them."""
    pairs = [(1.0, -0.5), (0.25, 0.75), (0.5, 0.5), (0.5, 0.25)]
    scores = [{"score_chosen": chosen, "score_rejected": rejected} for chosen, rejected in pairs]
    rows = [{**row, **found} for row, found in zip(make_rows(4), scores, strict=True)]
    args = PreferenceConfig(output_dir=str(tmp_path), disable_tqdm=True)
    facts = TrainingData(losses.build("sppo").needs, args, tokenizer, rows, 1).facts
    assert facts.ranges == {"score_chosen": (0.25, 1.0), "score_rejected": (-0.5, 0.75), "score_gap": (-0.5, 1.5)}
    assert facts.rows == 3
    assert TrainingData(losses.build("dpo").needs, args, tokenizer, rows, 1).facts.ranges == {}


def test_ranges_of_lists(tokenizer: Any, tmp_path: Path) -> None:
    """``make_lists`` scores answers 0, 0.1 and 0.3 of four, 0 and 0.1 of two and of three."""
    facts = data_of({"name": "lipo_lambda"}, make_lists(3), tokenizer, tmp_path).facts
    assert facts.ranges == {"scores": (0.0, pytest.approx(0.3))}


def test_chat_template_kwargs(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = (
        "{% if tone is defined %}{{ tone }} {% endif %}"
        "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    turn = [{"role": "user", "content": "hello"}]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    prompts = {}
    for name, keys in {"plain": {}, "kind": {"chat_template_kwargs": {"tone": "kindly"}}}.items():
        row = data_of({"name": "dpo"}, [{"prompt": turn, **answers}], tokenizer, tmp_path, **keys).train[0]
        prompts[name] = tokenizer.decode(row["prompt_ids"])
    assert prompts["kind"].replace(" ", "") == "kindly" + prompts["plain"].replace(" ", "")


@pytest.mark.parametrize("kind", ["pairs", "lists"])
def test_rows_of_tokens_are_read_also_where_they_are_a_dataset(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """What `alignlab pair` writes has ``prompt_ids``, as prepared sets have, and was taken for one of those."""
    one, other = ([40, 1], [60, 61, 1])
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (one, other)]
    row: dict[str, Any] = {"prompt": "the", "prompt_ids": [5, 6]}
    if kind == "pairs":
        row |= {"chosen": texts[0], "rejected": texts[1], "chosen_ids": one, "rejected_ids": other}
    else:
        row |= {"completions": texts, "scores": [1.0, 0.0], "completions_ids": [one, other]}
    loss = {"name": "dpo" if kind == "pairs" else "plackett_luce"}
    as_rows = data_of(loss, [row], tokenizer, tmp_path)
    found = data_of(loss, Dataset.from_list([row]), tokenizer, tmp_path)
    assert found.train[0] == as_rows.train[0]
    assert data_of(loss, found.train, tokenizer, tmp_path).train is found.train, "prepared sets stay as they are"
