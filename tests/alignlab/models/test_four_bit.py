"""4-bit base with LoRA, for real on the CPU: gradients, evaluation in between, saving and merging."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from alignlab.config.arguments import PreferenceConfig
from alignlab.config.options import ModelOptions
from alignlab.models import load_model, merge_adapter
from alignlab.training.trainer import PreferenceTrainer

bnb = pytest.importorskip("bitsandbytes")
LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A model whose widths are multiples of the 64-weight blocks, which is where bitsandbytes would repack it."""
    path = tmp_path_factory.mktemp("wide")
    make_model(hidden_size=64, intermediate_size=128).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def trainer(model_path: Path, tokenizer: Any, folder: Path, rows: Any, loss: Any = "dpo", **changes: Any) -> Any:
    options = ModelOptions(str(model_path), load_in_4bit=True, **changes.pop("model", {}))
    settings = {
        "output_dir": str(folder / "run"),
        "score_cache_dir": str(folder / "cache"),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        **changes,
    }
    args = PreferenceConfig(**settings)
    torch.manual_seed(0)
    return PreferenceTrainer(
        load_model(options), args, loss, rows, rows[:3], tokenizer, LoraConfig(**LORA), model_options=options
    )


def adapter_gradients(run: Any) -> torch.Tensor:
    """Gradients of the adapter's weights on the first batch, B made non-zero so that A has some too."""
    run.model.zero_grad()
    run.model.train()
    inputs = run._prepare_inputs(next(iter(run.get_train_dataloader())))
    run._step.begin(run.model, [inputs])
    run.compute_loss(run.model, inputs).backward()
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_gradients_after_an_evaluation_equal_those_before(
    compute: str, model_path: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """bitsandbytes 0.50.2 repacks 4-bit weights in an eval-mode forward on AVX512-BF16 CPUs; guarded, nothing moves."""
    model = {"bnb_4bit_compute_dtype": compute}
    run = trainer(model_path, tokenizer, tmp_path, make_rows(8), model=model)
    for name, parameter in run.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    before = adapter_gradients(run)
    assert before.abs().max() > 0
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.evaluate()
    assert torch.equal(adapter_gradients(run), before)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_base_is_four_bit_adapter_is_float32_and_only_it_learns(
    model_path: Path, tokenizer: Any, tmp_path: Path
) -> None:
    run = trainer(model_path, tokenizer, tmp_path, make_rows(16))
    layers = [module for module in run.model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 14, "seven projections in each of two layers"
    assert {layer.weight.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers), "double quantisation"
    trained = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all("lora_" in name for name in trained)
    base = {name: p.detach().clone() for name, p in run.model.named_parameters() if not p.requires_grad}
    run.train()
    for name, value in base.items():
        assert torch.equal(dict(run.model.named_parameters())[name], value), name
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("loss", ["dpo", "kto", "tdpo", "orpo"])
def test_losses_learn_on_a_four_bit_base(loss: str, model_path: Path, tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(model_path, tokenizer, tmp_path, make_rows(16), loss)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_second_run_finds_the_scores_of_the_first(model_path: Path, tokenizer: Any, tmp_path: Path) -> None:
    rows = make_rows(8)
    first = trainer(model_path, tokenizer, tmp_path, rows)
    assert first.frozen["reference"].forwards == 16
    assert trainer(model_path, tokenizer, tmp_path, rows).frozen["reference"].forwards == 0
    other = trainer(model_path, tokenizer, tmp_path, rows, model={"bnb_4bit_quant_type": "fp4"})
    assert other.frozen["reference"].forwards == 16


def test_saved_adapter_and_merged_model_score_as_in_memory(model_path: Path, tokenizer: Any, tmp_path: Path) -> None:
    """The adapter loads on a 4-bit base; the merged model is a plain one, equal to dequantised base plus adapter."""
    run = trainer(model_path, tokenizer, tmp_path, make_rows(16))
    run.train()
    run.save_model(str(tmp_path / "adapter"))
    ids = torch.tensor([[5, 9, 30, 44, 71]])
    run.model.eval()
    with torch.no_grad():
        expected = run.model(ids).logits
        again = PeftModel.from_pretrained(
            load_model(ModelOptions(str(model_path), load_in_4bit=True)), tmp_path / "adapter"
        )
        torch.testing.assert_close(again.eval()(ids).logits, expected, rtol=0, atol=1e-5)
        merge_adapter(run.model, tmp_path / "merged", tokenizer)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert not any(isinstance(module, bnb.nn.Linear4bit) for module in merged.modules())
        torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-4)


def test_weights_repacked_before_us_are_refused(model_path: Path, tokenizer: Any, tmp_path: Path) -> None:
    """A 4-bit model that ran in eval mode before it was given to the trainer is refused where it was repacked."""
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        model_path, quantization_config=quantised, device_map={"": "cpu"}
    ).eval()
    with torch.no_grad():
        model(torch.tensor([[5, 9, 30]]))
    repacked = [m for m in model.modules() if getattr(getattr(m, "weight", None), "quant_state", None) is not None]
    if not any(getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in repacked):
        pytest.skip("this CPU has no AVX512-BF16: bitsandbytes does not repack here")
    args = PreferenceConfig(output_dir=str(tmp_path), report_to="none")
    with pytest.raises(ValueError, match="already repacked"):
        PreferenceTrainer(model, args, "dpo", make_rows(4), None, tokenizer, LoraConfig(**LORA))
