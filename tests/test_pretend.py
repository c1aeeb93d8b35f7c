"""The trainer on a pretend accelerator: no operation mixes its tensors with the CPU's; the numbers are the CPU's."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pretend
import pytest
import torch
import zoo_ranks
from pretend import DEVICE, MixedDevices, is_there
from pretend_runs import Runs, close, figures, lora, on_the_device
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from zoo_ranks import CASES

from alignlab import losses


@pytest.fixture(scope="module")
def runs(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    gc.collect()
    gc.freeze()  # the Trainer collects garbage in every run
    yield Runs(tokenizer, tmp_path_factory.mktemp("pretend"))
    gc.unfreeze()


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


def test_a_model_is_loaded_as_on_the_cpu_there_and_afterwards(tmp_path: Path) -> None:
    """Rotary frequencies, which no file has, are made and not left as the memory was; ``meta`` reaches every maker.

    torch lists once a process what ``with torch.device(...)`` reaches; here it has not yet.
    """
    made = zoo_ranks.tiny(0)
    made.save_pretrained(tmp_path)
    expected = {**made.state_dict(), **dict(made.named_buffers())}
    torch.utils._device._device_constructors.cache_clear()
    with pretend.accelerator():
        there = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.device("meta"):
        assert torch.tensor([]).device.type == "meta"
    for model in (there, AutoModelForCausalLM.from_pretrained(tmp_path)):
        found = {**model.state_dict(), **dict(model.named_buffers())}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


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


# ---- the zoo ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_loss_trains_and_evaluates_as_on_the_cpu(case: str, runs: Runs) -> None:
    """Packed rows there against flat rows here; pairs given to a loss over labelled completions are joined again.

    That the layout is probed there is shown above, for every placement.
    """
    chosen = patch("alignlab.training.trainer.shared_layout", return_value="rows")
    run, found = on_the_device(lambda: runs.trainer(CASES[case]), chosen)
    assert run.layout == "rows"
    assert run.model.config._attn_implementation == "sdpa"
    assert found == close(figures(runs.trainer(CASES[case])))
    needs = losses.build(CASES[case]).needs
    if needs.data == "labelled" and "eval_rewards/chosen" in found:
        assert 0 <= found["eval_rewards/accuracies"] <= 1
