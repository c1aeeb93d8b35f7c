"""Adapters as a run makes and saves them: their own dropout, starts made of training rows, folders that load again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from peft import EvaConfig, LoraConfig, PeftModel

from alignlab.config import ModelOptions, PreferenceConfig
from alignlab.data import DataOptions, prepare
from alignlab.models import load_model
from alignlab.models.quantised import prepare_quantised
from alignlab.training import PreferenceTrainer
from alignlab.training.adapter_start import rows_of

LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
IDS = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(5))


def trainer(tokenizer: Any, folder: Path, config: Any, model: Any = None, **options: Any) -> PreferenceTrainer:
    args = PreferenceConfig(
        output_dir=str(folder / "run"),
        max_steps=2,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    return PreferenceTrainer(model or make_model(), args, "simpo", make_rows(16), None, tokenizer, config)


@torch.no_grad()
def scores(model: Any) -> torch.Tensor:
    return torch.log_softmax(model.eval()(input_ids=IDS).logits.float(), dim=-1)


def rates(model: Any) -> dict[str, set[float]]:
    """Returns the dropouts of a model: of modules of that kind within adapters, and of attention."""
    return {
        "adapter": {one.p for name, one in model.named_modules() if "lora_dropout" in name and hasattr(one, "p")},
        "attention": {one.attention_dropout for one in model.modules() if hasattr(one, "attention_dropout")},
    }


def test_disable_dropout_is_the_base_s_and_lora_dropout_the_adapter_s(tokenizer: Any, tmp_path: Path) -> None:
    config = LoraConfig(**LORA, lora_dropout=0.25)
    run = trainer(tokenizer, tmp_path, config, make_model(attention_dropout=0.3))
    assert rates(run.model) == {"adapter": {0.25}, "attention": {0.0}}
    kept = trainer(tokenizer, tmp_path, config, make_model(attention_dropout=0.3), disable_dropout=False)
    assert rates(kept.model) == {"adapter": {0.25}, "attention": {0.3}}


def test_lora_dropout_drops_in_training_alone(tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(tokenizer, tmp_path, LoraConfig(**LORA, lora_dropout=0.5, init_lora_weights=False))
    run.model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        first, second = (run.model(input_ids=IDS.to(run.args.device)).logits for _ in range(2))
    assert float((first - second).abs().max()) > 1e-3
    assert torch.equal(scores(run.model), scores(run.model))


@pytest.mark.parametrize("start", ["pissa_niter_2", "corda", "eva", "olora"])
def test_the_folder_of_a_run_loads_under_another_seed_and_without_rows(
    start: str, tokenizer: Any, tmp_path: Path
) -> None:
    """By plain PEFT, and as the policy or adapter of a next run; ranks and alphas of single layers included."""
    patterns = {} if start == "eva" else {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}}
    config = LoraConfig(**LORA, init_lora_weights=start, use_rslora=True, **patterns)
    make_model().save_pretrained(tmp_path / "base")
    run = trainer(tokenizer, tmp_path, config, str(tmp_path / "base"))
    run.train()
    run.save_model()
    expected, before = scores(run.model), scores(make_model())
    assert float((expected - before).abs().max()) > 1e-2
    torch.manual_seed(99)
    again = PeftModel.from_pretrained(make_model(), tmp_path / "run")
    assert float((scores(again) - expected).abs().max()) < 1e-4
    assert float((scores(load_model(ModelOptions(str(tmp_path / "run")))) - expected).abs().max()) < 1e-4


def test_a_checkpoint_of_a_random_start_is_resumed_and_no_model_of_its_own(tokenizer: Any, tmp_path: Path) -> None:
    """What is resumed is bit for bit what went on; what would be another model is refused by name."""
    config = LoraConfig(**LORA, init_lora_weights="pissa_niter_2")
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    make_model().save_pretrained(tmp_path / "base")

    def run(folder: str) -> PreferenceTrainer:
        args = PreferenceConfig(
            output_dir=str(tmp_path / folder), learning_rate=1e-2, disable_tqdm=True, use_cpu=True, **options
        )
        return PreferenceTrainer(
            str(tmp_path / "base"), args, "simpo", make_rows(16), None, tokenizer, copy.deepcopy(config)
        )

    whole = run("run")
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    with pytest.raises(ValueError, match=r"checkpoint-1: an adapter that started by .*'pissa_niter_2' is not the same"):
        load_model(ModelOptions(str(checkpoint)))
    torch.manual_seed(99)
    resumed = run("run")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(scores(resumed.model), scores(whole.model))


def test_eva_holds_the_principal_components_of_the_rows(tokenizer: Any, tmp_path: Path) -> None:
    """Of all rows at once: the span of A's rows is that of the first right singular vectors of a layer's inputs."""
    config = LoraConfig(**LORA, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0, tau=0.999))
    run = trainer(tokenizer, tmp_path, config)
    layer = run.model.base_model.model.model.layers[0].self_attn.q_proj
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0]))
    with torch.no_grad():
        for row in rows_of(run.data.train, run.args.seed):
            run.model(input_ids=row[None])
    handle.remove()
    inputs = torch.cat(seen)
    ours = layer.lora_A["default"].weight.detach()
    spread = (inputs - inputs.mean(0)) @ torch.linalg.qr(ours.T)[0]
    best = torch.linalg.svdvals(inputs - inputs.mean(0))[:4]
    assert float(spread.norm() ** 2 / (best**2).sum()) > 0.99
    plain = trainer(tokenizer, tmp_path, LoraConfig(**LORA))
    other = plain.model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.detach()
    assert float(((inputs - inputs.mean(0)) @ torch.linalg.qr(other.T)[0]).norm() ** 2 / (best**2).sum()) < 0.9


def test_corda_starts_as_the_base(tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(tokenizer, tmp_path, LoraConfig(**LORA, init_lora_weights="corda"))
    assert float((scores(run.model) - scores(make_model())).abs().max()) < 1e-4
    with run.model.disable_adapter():
        assert float((scores(run.model) - scores(make_model())).abs().max()) > 1e-3


def test_a_start_without_rows_or_with_too_few_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    args = PreferenceConfig(output_dir=str(tmp_path))
    with pytest.raises(ValueError, match="'eva' is made from training rows, and there is no train_dataset"):
        PreferenceTrainer(
            make_model(), args, "simpo", None, None, tokenizer, LoraConfig(**LORA, init_lora_weights="eva")
        )
    wide = LoraConfig(**{**LORA, "r": 500}, init_lora_weights="eva")
    with pytest.raises(ValueError, match=r"'eva' could not be made from the rows: 1000 components .* as many tokens"):
        trainer(tokenizer, tmp_path, wide)


def test_a_refused_start_is_refused_before_anything_is_loaded(tokenizer: Any, tmp_path: Path) -> None:
    args = PreferenceConfig(output_dir=str(tmp_path))
    options = ModelOptions(str(tmp_path / "is not there"), load_in_4bit=True)
    with pytest.raises(ValueError, match=r"peft.init_lora_weights: 'pissa' does not stand on a base that is stored"):
        PreferenceTrainer(
            options.name_or_path,
            args,
            "dpo",
            peft_config=LoraConfig(**LORA, init_lora_weights="pissa"),
            model_options=options,
        )


def test_eva_stands_on_a_4_bit_base_too(tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    make_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    options = ModelOptions(str(tmp_path / "base"), load_in_4bit=True)
    run = trainer(tokenizer, tmp_path, LoraConfig(**LORA, init_lora_weights="eva"), load_model(options))
    run.train()
    run.save_model()
    torch.manual_seed(99)
    again = PeftModel.from_pretrained(prepare_quantised(load_model(options)), tmp_path / "run")
    assert float((scores(again) - scores(run.model)).abs().max()) < 1e-4


def test_of_a_list_the_best_answer_makes_the_start(tokenizer: Any) -> None:
    rows = [{"prompt": "p", "completions": [" a", " b", " c"], "scores": [0, n, 1]} for n in (2, 0)]
    data = prepare(rows, tokenizer, DataOptions(kind="lists"), progress=False).dataset
    assert [tokenizer.decode(one, skip_special_tokens=True) for one in rows_of(data, 0)] == ["p b", "p c"]
