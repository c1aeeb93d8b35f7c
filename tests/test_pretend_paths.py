"""The trainer's other paths on a pretend accelerator: references, heads, layouts, samples, reports, checkpoints."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import engine_ranks
import pretend
import pytest
import torch
import zoo_ranks
from pretend import DEVICE
from pretend_runs import Runs, close, figures, lora, on_the_device
from transformers import AutoModelForCausalLM

from alignlab.config import load_config
from alignlab.evaluation import EvalOptions, evaluate
from alignlab.evaluation import flat as flat_figures
from alignlab.run import train
from alignlab.scoring import FLAT, forward

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    gc.collect()
    gc.freeze()  # the Trainer collects garbage in every run
    folder = tmp_path_factory.mktemp("pretend")
    engine_ranks.make_experts(folder / "experts")
    yield Runs(tokenizer, folder)
    gc.unfreeze()


@contextmanager
def chunked() -> Iterator[None]:
    """Within it the LM head always runs in chunks."""
    with patch.object(forward, "worthwhile", return_value=True):
        yield


@contextmanager
def flat() -> Iterator[None]:
    """Within it rows are laid out flat, which by itself only a CPU is given."""

    def choose(policy: Any, frozen: Any, *_: Any, **__: Any) -> str:
        for model in (policy, *(one.model.loaded() for one in frozen.values() if not one.cached)):
            getattr(model, "get_base_model", lambda model=model: model)().set_attn_implementation(FLAT)
        return "flat"

    with patch("alignlab.training.trainer.shared_layout", choose):
        yield


@contextmanager
def own_precision() -> Iterator[None]:
    """Within it the process's precision of products may be changed."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def eager() -> Any:
    model = zoo_ranks.tiny(0)
    model.set_attn_implementation("eager")
    return model


def half() -> Any:
    return zoo_ranks.tiny(0).to(torch.bfloat16)


def experts(runs: Runs) -> Any:
    return AutoModelForCausalLM.from_pretrained(runs.folder / "experts")


Case = tuple[str, dict[str, Any], list[Callable[[], Any]]]
CASES: dict[str, Case] = {
    "lora, adapter off, cached": ("dpo", {"peft_config": lora}, []),
    "lora, adapter off": ("tdpo", {"peft_config": lora, "reference": "adapter_off"}, []),
    "lora, live": ("dpo", {"peft_config": lora, "reference": "live"}, []),
    "lora, chunked": ("dpo", {"peft_config": lora}, [chunked]),
    "live": ("dpo", {"reference": "live"}, []),
    "another model": ("dpo", {"ref_model": lambda: zoo_ranks.tiny(2)}, []),
    "another model, live": ("dpo", {"ref_model": lambda: zoo_ranks.tiny(2), "reference": "live"}, []),
    "moving": ("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 1}, []),
    "hidden states": ("tdpo", {"reference": "cached"}, []),
    "hidden states in half precision": ("tdpo", {"reference": "cached", "reference_hidden_dtype": "bfloat16"}, []),
    "chunked": ("dpo", {}, [chunked]),
    "chunked, whole distributions": ("tdpo", {}, [chunked]),
    "chunked, second moments": ("wpo", {}, [chunked]),
    "eager": ("dpo", {"model": eager}, []),
    "flat": ("dpo", {}, [flat]),
    "flat, mismatched": ("kto", {"reference": "live"}, [flat]),
    "padded": ("tdpo", {"layout": "padded"}, []),
    "an adapter on half precision": ("dpo", {"model": half, "peft_config": lora}, []),
    "micro-batches": ("group_robust", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, []),
    "totals of the step before": ("bco", {"coupled_totals": "previous_step", "gradient_accumulation_steps": 2}, []),
    "checkpointing": ("dpo", {"gradient_checkpointing": True}, []),
    "experts": ("dpo", {"model": experts, "router_aux_loss_coef": 0.1}, []),
    "samples": ("dpo", {"reference": "live", "eval_generations": 3, "eval_max_new_tokens": 6}, []),
    "fewer bits in products": ("dpo", {"float32_matmul_precision": "high"}, [own_precision]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_path_has_the_figures_of_the_cpu(case: str, runs: Runs, tmp_path: Path) -> None:
    """Every path trains and evaluates there; the same rows give the same losses and figures here."""
    loss, options, contexts = CASES[case]

    def make(folder: str) -> Any:
        made = {name: value() if callable(value) and value is not experts else value for name, value in options.items()}
        if made.get("model") is experts:
            made["model"] = experts(runs)
        return runs.trainer(loss, score_cache_dir=str(tmp_path / folder), **made)

    _, found = on_the_device(lambda: make("there"), *(context() for context in contexts))
    with contexts[0]() if contexts else nullcontext():
        expected = figures(make("here"))
    assert found == close(expected)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(runs: Runs, tmp_path: Path) -> None:
    """Weights, optimiser, the loss's state and the moving reference are written from the device and read back to it."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "reference": "live"}
    options |= {"sync_ref_model": True, "ref_model_sync_steps": 2, "output_dir": str(tmp_path)}
    with pretend.accelerator():
        whole = runs.trainer("bco", **options)
        whole.train()
        again = runs.trainer("bco", **options)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            assert other.device == DEVICE
            assert torch.equal(one, other)
        assert whole.loss.state_dict().keys() == again.loss.state_dict().keys()
        assert [e["loss"] for e in again.state.log_history if "loss" in e] == [
            e["loss"] for e in whole.state.log_history if "loss" in e
        ]


def numbers(figures: Any) -> dict[str, float]:
    """Returns the figures that are numbers, under one name each."""
    return {name: value for name, value in flat_figures(figures).items() if isinstance(value, int | float)}


def test_a_whole_run_writes_its_report_and_what_it_saved_is_evaluated(tmp_path: Path) -> None:
    """As the commands do: config to report, then held-out pairs of the saved model, the same there and here."""
    engine_ranks.prepare(tmp_path)
    values = engine_ranks.settings(tmp_path, tmp_path / "run", "dpo", max_steps=2, report=True, report_samples=2)
    with pretend.accelerator():
        folder = train(load_config({**values, "optim": "adamw_torch", "eval_strategy": "steps", "eval_steps": 1}))
        assert "<html" in (folder / "report.html").read_text()
        assert len(json.loads((folder / "samples.json").read_text())) == 2
        options = EvalOptions(
            str(folder), str(tmp_path / "eval_pairs.jsonl"), str(tmp_path / "model"), generate=2, max_new_tokens=4
        )
        there = evaluate(options)
    assert there["answers"]["answers"] == 2
    assert numbers(there["pairs"]) == {
        name: pytest.approx(value, abs=1e-5) for name, value in numbers(evaluate(options)["pairs"]).items()
    }
