"""A real reward model as a judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model
from transformers import LlamaConfig, LlamaForSequenceClassification

from alignlab.judges import Comparison, build_judge
from alignlab.judges.reward_model import RewardModel, RewardOptions

GOOD = "a good answer"


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    path = tmp_path_factory.mktemp("reward")
    torch.manual_seed(3)
    values = {name: getattr(make_model().config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    config = LlamaConfig(
        **values, intermediate_size=64, num_attention_heads=4, num_labels=1, pad_token_id=None, eos_token_id=1
    )
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_reward_model(reward_model: Path, tokenizer: Any) -> None:
    """Batches of ragged texts give each text the logit that the model gives it alone."""
    texts = ["the red cat", "the dog sees a bird, and the bird finds a stone", "song", GOOD]
    judge = RewardModel(str(reward_model), RewardOptions(batch_size=3))
    model = LlamaForSequenceClassification.from_pretrained(reward_model)
    alone = []
    for text in texts:
        with torch.no_grad():
            alone.append(float(model(**tokenizer("Why?" + text, return_tensors="pt")).logits[0, 0]))
    assert judge.rewards([("Why?", text) for text in texts]) == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 4
    verdict = judge([Comparison("Why?", texts[0], texts[1])])[0]
    assert verdict.outcome == float(alone[0] > alone[1])
    assert (verdict.reward, verdict.reference_reward) == pytest.approx((alone[0], alone[1]), abs=1e-5)


def test_reward_model_takes_messages_through_its_template(reward_model: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}]
    judge = RewardModel(str(reward_model))
    plain = judge.rewards([(turns, GOOD)])
    assert plain == judge.rewards([("user: Why?\n\n", GOOD)])
    judge.tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}"
    assert judge.rewards([(turns, GOOD)]) == judge.rewards([("Why? ", f"{GOOD} ")]) != plain


def test_a_model_with_several_outputs_is_no_reward_model(tmp_path: Path, tokenizer: Any) -> None:
    LlamaForSequenceClassification(
        LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 2 outputs; a reward model has one"):
        build_judge(str(tmp_path))


def test_scores_are_rewards_and_the_judge_is_known_by_its_weights(reward_model: Path, tmp_path: Path) -> None:
    judge = RewardModel(str(reward_model))
    texts = ["the red cat", GOOD]
    assert judge.scores("Why?", texts) == judge.rewards([("Why?", text) for text in texts])
    assert judge.kind == "reward"
    assert judge.identity() == RewardModel(str(reward_model)).identity()
    judge.model.score.weight.data[0, 0] += 1.0
    judge.model.save_pretrained(tmp_path)
    judge.tokenizer.save_pretrained(tmp_path)
    assert RewardModel(str(tmp_path)).identity() != RewardModel(str(reward_model)).identity()


def test_a_judge_is_known_by_how_it_reads(reward_model: Path, tmp_path: Path) -> None:
    """Tokens, template, length and what its training wrote of them: with any other its scores are another judge's."""
    shutil.copytree(reward_model, tmp_path, dirs_exist_ok=True)

    def identity(**options: Any) -> str:
        return RewardModel(str(tmp_path), RewardOptions(**options)).identity()

    seen = [identity(), identity(max_length=7)]
    for length in (64, 8):
        (tmp_path / "reward_model.json").write_text(json.dumps({"outputs": 1, "reading": {"max_length": length}}))
        seen.append(identity())
    tokenizer = RewardModel(str(tmp_path)).tokenizer
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    seen.append(identity())
    tokenizer.add_tokens(["the red"])
    tokenizer.save_pretrained(tmp_path)
    seen.append(identity())
    assert len(set(seen)) == 6
    assert identity() == seen[-1]
    assert identity(batch_size=1) == seen[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected outputs, a whole number from 1, and reading, .* found outputs None"),
        ("{", "cannot be read"),
        ('{"outputs": 0, "reading": {}}', "expected outputs, .* found outputs 0"),
        ('{"outputs": 1, "reading": []}', r"expected outputs, .* and reading \[\]"),
        ('{"outputs": 1, "reading": {"max_lenght": 3}}', "reading.max_lenght: no option of rows has this name"),
    ],
)
def test_hostile_records_are_named(text: str, message: str, reward_model: Path, tmp_path: Path) -> None:
    shutil.copytree(reward_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "reward_model.json").write_text(text)
    with pytest.raises(ValueError, match=f"reward_model.json: {message}"):
        build_judge(str(tmp_path))
