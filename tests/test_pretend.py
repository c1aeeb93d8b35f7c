"""The trainer on a pretend accelerator: no operation mixes its tensors with the CPU's; the numbers are the CPU's."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pretend
import pytest
import torch
import zoo_ranks
from pretend import DEVICE, MixedDevices, is_there
from transformers import PrinterCallback, Trainer, TrainingArguments

from alignlab import losses
from alignlab.config import PreferenceConfig
from alignlab.training import PreferenceTrainer

GROUPS = ("many", "few")


class Runs:
    """Makes trainers over one tiny model; sets are tokenised once for each kind of needs."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.tokenizer, self.folder = tokenizer, folder
        self.sets: dict[Any, Any] = {}
        zoo_ranks.save_scorer(folder)

    def trainer(self, loss: str | Mapping[str, Any], model: Any = None, **options: Any) -> PreferenceTrainer:
        """Returns a trainer of two steps, with an evaluation set."""
        built = losses.build(loss)
        extra = {name: options.pop(name) for name in ("peft_config", "ref_model") if name in options}
        args = PreferenceConfig(
            **{
                "output_dir": str(self.folder / "run"),
                "score_cache_dir": str(self.folder / "scores"),
                "scorers": {name: str(self.folder / "scorer") for name in built.needs.scorers} or None,
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 2e-3,
                "lr_scheduler_type": "constant",
                "logging_steps": 1,
                "save_strategy": "no",
                "disable_tqdm": True,
                "optim": "adamw_torch",
                **options,
            }
        )
        rows = self.sets.get(built.needs) or zoo_ranks.rows_for(built.needs)
        made = PreferenceTrainer(
            zoo_ranks.tiny(0) if model is None else model, args, built, rows, rows, self.tokenizer, **extra
        )
        made.remove_callback(PrinterCallback)
        self.sets[built.needs] = made.data.train
        return made


@pytest.fixture(scope="module")
def runs(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    gc.collect()
    gc.freeze()  # the Trainer collects garbage in every run
    yield Runs(tokenizer, tmp_path_factory.mktemp("pretend"))
    gc.unfreeze()


def figures(run: PreferenceTrainer) -> dict[str, Any]:
    """Trains and evaluates; returns the losses of the steps and the figures of the evaluation, times left out."""
    run.train()
    steps = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "epoch")
    return {"losses": steps, **{name: value for name, value in run.evaluate().items() if name not in timed}}


def on_the_device(make: Callable[[], PreferenceTrainer], *contexts: Any) -> tuple[PreferenceTrainer, dict[str, Any]]:
    """Makes a trainer on the pretend device, trains and evaluates it there; returns it and its figures."""
    with ExitStack() as stack:
        for context in (pretend.accelerator(), *contexts):
            stack.enter_context(context)
        run = make()
        found = figures(run)
        assert run.args.device == DEVICE
        assert {weight.device for weight in run.model.parameters()} == {DEVICE}
        return run, found


def close(expected: Mapping[str, Any]) -> Any:
    """Within float32's rounding; sums of squares in the 100000s are held to 1e-6 of their size."""
    return {name: pytest.approx(value, abs=2e-4, rel=1e-5) for name, value in expected.items()}


# ---- the device itself -----------------------------------------------------------------------------------------------


def test_what_a_gpu_refuses_is_refused() -> None:
    """Tensors of both places in one operation, in any order, also within lists, as an index or for the data."""
    with pretend.accelerator():
        there, here = torch.arange(6.0, device=DEVICE).reshape(2, 3), torch.arange(6.0).reshape(2, 3)
        mixed: list[Callable[[], Any]] = [
            lambda: there + here,
            lambda: here.add_(there[0, 0]),
            lambda: torch.stack((there, here)),
            lambda: torch.stack((there[0, 0], here[0, 0])),
            lambda: torch.where(here > 1, there, there),
            lambda: there[torch.tensor([0])],
            lambda: here[torch.tensor([0], device=DEVICE)],
            lambda: there.index_put((torch.tensor([0], device=DEVICE),), here[0]),
            lambda: there.exponential_(generator=torch.Generator()),
            lambda: torch.nn.functional.linear(there, here),
            lambda: torch.equal(there, here),
            lambda: setattr(there, "data", here),
        ]
        for operation in mixed:
            with pytest.raises(MixedDevices):
                operation()
        with pytest.raises(TypeError, match="can't convert lazy:0 device type tensor to numpy"):
            there.numpy()


def test_what_a_gpu_forgives_is_forgiven_and_computed_exactly() -> None:
    """Single numbers of the CPU in elementwise arithmetic; copies; what is made from a tensor stays beside it."""
    with pretend.accelerator():
        there = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=DEVICE)
        for result, expected in (
            (there * torch.tensor(2.0), [[2.0, 4.0], [6.0, 8.0]]),
            (there.masked_fill(there > 2, torch.tensor(0.0)), [[1.0, 2.0], [0.0, 0.0]]),
            (torch.zeros_like(there).copy_(torch.ones(2, 2)), [[1.0, 1.0], [1.0, 1.0]]),
            (there @ there, [[7.0, 10.0], [15.0, 22.0]]),
            (there.cpu().to(DEVICE), [[1.0, 2.0], [3.0, 4.0]]),
        ):
            assert result.device == DEVICE
            assert result.tolist() == expected
        assert there.cpu().device.type == torch.zeros(1).device.type == "cpu"
        assert (there.sum().item(), bool((there > 3).any())) == (10.0, True)


def test_a_model_that_moves_keeps_its_parameters_and_its_ties() -> None:
    """As on a GPU the parameters are the same objects before and after, so that an optimiser made before holds them."""
    tied = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    weight = tied[0].weight
    with pretend.accelerator():
        tied.to(DEVICE)
        assert tied[0].weight is tied[1].weight is weight
        assert is_there(weight)
        tied(torch.ones(1, 2, device=DEVICE)).sum().backward()
        assert weight.grad is not None
        assert weight.grad.device == DEVICE


# ---- where engines leave the model -----------------------------------------------------------------------------------


@contextmanager
def left_on_the_cpu(*, fsdp: bool = False) -> Iterator[None]:
    """Within it the Trainer leaves the model to an engine, as it does for ZeRO-1, ZeRO-2 and FSDP."""
    wrapped = Trainer.create_accelerator_and_postprocess

    def create(trainer: Trainer) -> None:
        wrapped(trainer)
        trainer.is_fsdp_enabled = fsdp

    with (
        patch.object(TrainingArguments, "place_model_on_device", None if fsdp else False),
        patch.object(Trainer, "create_accelerator_and_postprocess", create),
    ):
        yield


PLACEMENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddp": (nullcontext, {}),
    "zero": (left_on_the_cpu, {}),
    "fsdp": (lambda: left_on_the_cpu(fsdp=True), {}),
    "bf16_full_eval": (nullcontext, {"bf16_full_eval": True}),
}


@pytest.mark.parametrize(
    ("loss", "adapter"), [("dpo", False), ("simpo", False), ("dpo", True)], ids=["dpo", "simpo", "dpo-lora"]
)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_reference_is_scored_and_the_layout_chosen_wherever_the_model_was_left(
    placement: str, loss: str, adapter: bool, runs: Runs, tmp_path: Path
) -> None:
    """Scores are made and rows laid out as on a device that the Trainer fills itself; FSDP gets its model back."""
    context, options = PLACEMENTS[placement]
    peft = {"peft_config": lora()} if adapter else {}
    with pretend.accelerator(), context():
        run = runs.trainer(loss, score_cache_dir=str(tmp_path), **peft, **options)
        assert run.layout == "rows"
        assert {weight.device.type for weight in run.model.parameters()} == (
            {"cpu"} if placement == "fsdp" else {"lazy"}
        )
        assert sum(one.forwards for one in run.frozen.values()) == (28 if loss == "dpo" else 0)
        before = run.evaluate()
    if loss == "dpo":
        assert before["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
