"""Reward models from config to judge: trained, saved, loaded by transformers, resumed, adapted, quantised, sharded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import engine_ranks
import pytest
import torch
from launching import TORCHRUN, launch
from making import make_model, make_rows
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

from alignlab import models
from alignlab.config import ModelOptions, PreferenceConfig
from alignlab.judges import build_judge
from alignlab.judges.reward_model import RewardModel
from alignlab.training import PreferenceTrainer

BRADLEY_TERRY = {"name": "bradley_terry", "centring": 0.01}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A language model to start from."""
    path = tmp_path_factory.mktemp("start")
    make_model(hidden_size=16, intermediate_size=32, num_attention_heads=2).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def trainer(model: Any, folder: Path, tokenizer: Any, loss: Any = BRADLEY_TERRY, **options: Any) -> PreferenceTrainer:
    peft, rows = options.pop("peft_config", None), options.pop("rows", None) or make_rows(12)
    told = options.pop("model_options", None)
    args = PreferenceConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **options,
        }
    )
    return PreferenceTrainer(model, args, loss, rows, rows[:4], tokenizer, peft_config=peft, model_options=told)


def rewards_in_training(run: PreferenceTrainer) -> list[float]:
    """Returns the rewards of the evaluation rows' answers as the trainer's own step gives them."""
    found: list[float] = []
    run.model.eval()
    for inputs in run.get_eval_dataloader():
        with torch.no_grad():
            batch: Any = run._step.scored(run.model, run._prepare_inputs(inputs))
        pairs = zip(batch.chosen.values[:, 0].tolist(), batch.rejected.values[:, 0].tolist(), strict=True)
        found += [value for pair in pairs for value in pair]
    return found


def asked(rows: list[dict[str, Any]]) -> list[tuple[Any, str]]:
    return [(row["prompt"], row[name]) for row in rows for name in ("chosen", "rejected")]


def test_a_saved_reward_model_says_the_same_to_everyone(start: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Trainer, transformers' class on padded batches of either side, and our judge: within 1e-5."""
    run = trainer(str(start), tmp_path, tokenizer)
    assert run.frozen == {}, "no reference is loaded, scored or cached"
    assert run.layout == "flat"
    run.train()
    run.save_model()
    expected, rows = rewards_in_training(run), make_rows(12)[:4]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (type(model).__name__, model.config.num_labels) == ("LlamaForSequenceClassification", 1)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        texts = [prompt + answer + tokenizer.eos_token for prompt, answer in asked(rows)]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            assert model(**inputs).logits[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    judge: Any = build_judge(str(tmp_path))
    assert judge.rewards(asked(rows)) == pytest.approx(expected, abs=1e-5)
    assert judge.scores(rows[0]["prompt"], [rows[0]["chosen"], ""]) == [pytest.approx(expected[0], abs=1e-5), None]


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_chat_templates_and_pads_that_are_ends(pad: str | None, start: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Messages end in EOS by the template; where that pads as well, everyone reads the token before it."""
    own = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, eos_token="<eos>", pad_token=pad)
    own.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    own.chat_template = own.chat_template.replace("\n{% endfor", "{% endfor")
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")},
        }
        for row in make_rows(12)
    ]
    run = trainer(str(start), tmp_path, own, rows=rows)
    run.train()
    run.save_model()
    expected = rewards_in_training(run)
    texts = [(row["prompt"], row[name][0]["content"]) for row in rows[:4] for name in ("chosen", "rejected")]
    assert RewardModel(str(tmp_path)).rewards(texts) == pytest.approx(expected, abs=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.pad_token_id == (0 if pad else 1)
    rendered = [
        own.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
        for prompt, answer in texts
    ]
    inputs = models.load_tokenizer(ModelOptions(str(tmp_path)))(rendered, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        assert model(**inputs).logits[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_an_adapter_trains_and_keeps_its_head(outputs: int, start: Path, tokenizer: Any, tmp_path: Path) -> None:
    """LoRA of task SEQ_CLS: the head moves, is saved, and comes back with the adapter; merged it is a plain model."""
    rows = make_rows(12)
    loss: Any = BRADLEY_TERRY
    if outputs > 1:
        loss = {"name": "reward_regression", "outputs": outputs}
        rows = [row | {f"rewards_{name}": [1.0, 0.0, -1.0] for name in ("chosen", "rejected")} for row in rows]
    config = LoraConfig(task_type="SEQ_CLS", r=4)
    run = trainer(str(start), tmp_path, tokenizer, loss, rows=rows, peft_config=config)
    before = run.model.base_model.model.score.modules_to_save.default.weight.detach().clone()
    run.train()
    run.save_model()
    after = run.model.base_model.model.score.modules_to_save.default.weight
    assert (after - before).abs().max() > 1e-3
    assert models.outputs_of(str(tmp_path)) == outputs
    again: Any = models.load_model(ModelOptions(str(tmp_path)), outputs=outputs)
    assert torch.equal(again.base_model.model.score.modules_to_save.default.weight, after)
    direct = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=outputs)
    inputs = tokenizer("the red cat :", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    models.merge_adapter(run.model, tmp_path / "merged", tokenizer)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.num_labels == outputs
    found = [one.eval()(**inputs).logits.tolist()[0] for one in (again, direct, merged)]
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)
    if outputs == 1:
        rewards = [RewardModel(str(path)).rewards(asked(rows[:2])) for path in (tmp_path, tmp_path / "merged")]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)
    else:
        with pytest.raises(ValueError, match="has 3 outputs; a reward model has one"):
            build_judge(str(tmp_path))


def test_a_new_head_is_drawn_by_the_seed(start: Path, tokenizer: Any, tmp_path: Path) -> None:
    heads = []
    for index, seed in enumerate((1, 1, 2)):
        torch.manual_seed(100 + index)
        run = trainer(str(start), tmp_path, tokenizer, seed=seed)
        heads.append(run.model.score.weight.detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_four_bit_base_keeps_a_plain_trained_head(start: Path, tokenizer: Any, tmp_path: Path) -> None:
    options = ModelOptions(str(start), load_in_4bit=True)
    config = LoraConfig(task_type="SEQ_CLS", r=4)
    run = trainer(str(start), tmp_path, tokenizer, peft_config=config, model_options=options)
    base = run.model.base_model.model
    assert type(base.model.layers[0].self_attn.q_proj.base_layer).__name__ == "Linear4bit"
    head = base.score.modules_to_save.default
    assert (type(head), head.weight.dtype, head.weight.requires_grad) == (torch.nn.Linear, torch.float32, True)
    before = head.weight.detach().clone()
    run.train()
    assert (head.weight - before).abs().max() > 1e-3
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_an_adapter_on_a_half_precision_base_has_an_exact_head(start: Path, tokenizer: Any, tmp_path: Path) -> None:
    options = ModelOptions(str(start), dtype="bfloat16")
    config = LoraConfig(task_type="SEQ_CLS", r=4)
    run = trainer(str(start), tmp_path, tokenizer, peft_config=config, model_options=options)
    assert run.model.base_model.model.score.modules_to_save.default.weight.dtype == torch.float32
    assert run.model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.bfloat16
    run.train()
    run.save_model()
    expected = rewards_in_training(run)
    assert RewardModel(str(tmp_path)).rewards(asked(make_rows(4))) == pytest.approx(expected, abs=0.02)


def test_a_resumed_run_is_the_same_bit_for_bit(start: Path, tokenizer: Any, tmp_path: Path) -> None:
    whole = trainer(str(start), tmp_path / "whole", tokenizer, save_strategy="steps", save_steps=2)
    whole.train()
    other = trainer(str(start), tmp_path / "other", tokenizer, save_strategy="steps", save_steps=2, seed=42)
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, other.model.get_parameter(name)), name
    record = json.loads((tmp_path / "whole" / "checkpoint-2" / "reward_model.json").read_text())
    assert record["outputs"] == 1
    assert models.outputs_of(str(tmp_path / "whole" / "checkpoint-4")) == 1


def test_what_would_be_silently_wrong_is_refused(start: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task_type: CAUSAL_LM would leave the value head `score` as it was drawn"):
        trainer(str(start), tmp_path, tokenizer, peft_config=LoraConfig(task_type="CAUSAL_LM", r=4))
    with pytest.raises(ValueError, match="task_type: SEQ_CLS is for losses that read values"):
        trainer(str(start), tmp_path, tokenizer, "simpo", peft_config=LoraConfig(task_type="SEQ_CLS", r=4))
    with pytest.raises(ValueError, match="LlamaForCausalLM has no value head `score`"):
        trainer(make_model(), tmp_path, tokenizer)
    with pytest.raises(ValueError, match="its value head has 2 outputs, and the loss reads 1"):
        trainer(make_model(outputs=2), tmp_path, tokenizer)
    with pytest.raises(ValueError, match="LlamaForSequenceClassification is a reward model, and the loss reads log-"):
        trainer(make_model(outputs=1), tmp_path, tokenizer, "simpo")
    with pytest.raises(ValueError, match="eval_generations: a reward model writes no answers"):
        trainer(str(start), tmp_path, tokenizer, eval_generations=2)
    frozen: Any = make_model(outputs=1)
    frozen.score.requires_grad_(False)
    with pytest.raises(ValueError, match="its value head `score` is frozen"):
        trainer(frozen, tmp_path, tokenizer)
    make_model(outputs=1).save_pretrained(tmp_path / "reward")
    runs = tmp_path / "runs"
    with pytest.raises(ValueError, match="is a reward model with 1 output, and a language model is needed here"):
        trainer(str(tmp_path / "reward"), runs, tokenizer, "simpo")
    with pytest.raises(ValueError, match="is a reward model with 1 output, and a head of 3 outputs is needed here"):
        trainer(
            str(tmp_path / "reward"),
            runs,
            tokenizer,
            {"name": "reward_regression", "outputs": 3},
            rows=[
                row | {f"rewards_{name}": [1.0, 0.0, -1.0] for name in ("chosen", "rejected")} for row in make_rows(4)
            ],
        )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_under_zero_equal_one_process(stage: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All weights and LoRA, a head drawn anew: losses within 1e-4, and the same margins and rewards."""
    folder = tmp_path_factory.mktemp(f"stage{stage}")
    engine_ranks.prepare(folder)
    lora: dict[str, Any] = {"peft": {"r": 4, "target_modules": "all-linear"}, "learning_rate": 5e-3}
    runs: list[dict[str, Any]] = [
        {"of": "bradley_terry", "name": "all"},
        {"of": "bradley_terry", "name": "lora", **lora},
    ]
    launch([sys.executable], folder, folder / "one", runs)
    launch([*TORCHRUN], folder, folder / "two", [{**run, "deepspeed": f"zero{stage}.json"} for run in runs])
    for run in runs:
        one, two = (
            json.loads((folder / part / run["name"] / "trainer_state.json").read_text()) for part in ("one", "two")
        )
        expected, found = ([entry["loss"] for entry in log["log_history"] if "loss" in entry] for log in (one, two))
        assert len(expected) == engine_ranks.STEPS
        assert max(expected) - min(expected) > 0.1, "the trajectory moves"
        assert found == pytest.approx(expected, abs=1e-4), run["name"]
        last, other = one["log_history"][-1], two["log_history"][-1]
        assert other["eval_rewards/margins"] == pytest.approx(last["eval_rewards/margins"], abs=2e-3)
    judged = [
        RewardModel(str(folder / part / "all")).rewards([("the red cat :", " good dog")])[0] for part in ("one", "two")
    ]
    assert judged[1] == pytest.approx(judged[0], abs=2e-3)
