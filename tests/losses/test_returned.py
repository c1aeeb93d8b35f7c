"""What a loss returns is looked at wherever a loss is called; the message names file, line and class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from alignlab import losses
from alignlab.losses import Loss, LossOutput, Needs
from alignlab.losses._examples import example_batch

HEAD = """import torch
from alignlab.losses import Loss, LossOutput, Needs


class Mine(Loss):
    needs = Needs(ref_logps=True)

    def forward(self, batch, totals=None):
        z = batch.chosen.log_ratios - batch.rejected.log_ratios
        return {}


def function(batch):
    return {}


function.needs = Needs(ref_logps=True)
"""
NEEDS = Needs(ref_logps=True)


def written(folder: Path, of_class: str = "LossOutput(-z)", of_function: str = "-batch.chosen.log_ratios") -> Path:
    path = folder / "mine.py"
    path.write_text(HEAD.format(of_class, of_function))
    return path


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        ("None", "forward must return a LossOutput, found None; write LossOutput(loss) with loss [N]"),
        ("-z", "forward must return a LossOutput, found a tensor [8] on cpu; write LossOutput(loss) with loss [N]"),
        ("LossOutput(None)", "the loss must be a tensor [8], one number a row, found None"),
        (
            "LossOutput(-z.mean())",
            "the loss must have shape [8], one number a row, found []: do not reduce over rows, the trainer does",
        ),
        (
            "LossOutput(-z[:, None])",
            "the loss must have shape [8], one number a row, found [8, 1]: do not reduce over rows, the trainer does",
        ),
        ("LossOutput((z > 0).long())", "the loss must be floating point, found torch.int64"),
        ("LossOutput(-z.to('meta'))", "the loss must be on cpu, where the batch is, found meta"),
        (
            "LossOutput(-z.detach())",
            "the loss has no gradient, so nothing would be learned: is it detached, or made under no_grad?",
        ),
        (
            "LossOutput(-z, z.mean())",
            "chosen_rewards must be None or a tensor [8] on cpu, found a tensor [] on cpu",
        ),
        ("LossOutput(-z, metrics=[])", "metrics must be a mapping of names to (sum, count), found a list"),
        (
            "LossOutput(-z, metrics={'m': z.mean()})",
            "metrics['m'] must be (sum, count), two tensors of no dimension, found a tensor [] on cpu",
        ),
        (
            "LossOutput(-z, metrics={'m': (z.sum(), len(z))})",
            "metrics['m'] must be (sum, count), two tensors of no dimension, found [a tensor [] on cpu, a int]",
        ),
        (
            "LossOutput(-z, metrics={'loss': (z.sum(), torch.tensor(8.0))})",
            "metrics['loss']: the trainer logs its own figure under this name; choose another",
        ),
        (
            "LossOutput(-z, metrics={'rewards/margins': (z.sum(), torch.tensor(8.0))})",
            "metrics['rewards/margins']: the trainer logs its own figure under this name; choose another",
        ),
    ],
)
def test_each_fault_of_a_class_is_named_with_its_place(tmp_path: Path, returned: str, fault: str) -> None:
    """The same message where the loss is called, where it is a part of another one, and in the contract's check."""
    spec = f"{written(tmp_path, of_class=returned)}:Mine"
    message = f"{tmp_path}/mine.py:8 (Mine.forward): {fault}"
    for loss in (losses.build(spec), losses.build({"name": "weighted_sum", "parts": [spec, "dpo"]})):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            loss(example_batch(NEEDS))
    findings = losses.check(losses.build(spec))
    assert {str(one) for one in findings} == {f"shapes: {message}"}
    assert all(one.fatal for one in findings)


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        ("None", "the loss must be a tensor [8], one number a row, found None"),
        (
            "-batch.chosen.log_ratios.mean()",
            "the loss must have shape [8], one number a row, found []: do not reduce over rows, the trainer does",
        ),
    ],
)
def test_each_fault_of_a_function_is_named_with_its_place(tmp_path: Path, returned: str, fault: str) -> None:
    loss = losses.build(f"{written(tmp_path, of_function=returned)}:function")
    with pytest.raises(ValueError, match="^" + re.escape(f"{tmp_path}/mine.py:13 (function): {fault}") + "$"):
        loss(example_batch(NEEDS))


def test_without_gradients_none_is_asked_for() -> None:
    """In evaluation, and where the policy's scores carry none, a loss without gradient is what there can be."""
    loss = losses.from_function(lambda batch: -batch.chosen.log_ratios.detach(), needs=NEEDS)
    batch = example_batch(NEEDS)
    with pytest.raises(ValueError, match="the loss has no gradient"):
        loss(batch)
    with torch.no_grad():
        assert loss(batch).loss.shape == (8,)


def test_an_error_in_forward_names_its_line_and_is_fatal(tmp_path: Path) -> None:
    (first, *_) = losses.check(losses.build(f"{written(tmp_path, of_class='z.no_such_thing')}:Mine"))
    assert first.fatal
    assert str(first).startswith("shapes: raised AttributeError: ")
    assert str(first).endswith(f"({tmp_path}/mine.py:10)")


def test_an_error_in_bind_may_be_the_examples_and_is_not_fatal() -> None:
    """Weights by the names of one's own groups fit no example."""
    loss = losses.build({"name": "group_robust", "initial_weights": {"mine": 0.4, "yours": 0.6}})
    findings = losses.check(loss)
    assert findings
    assert not any(one.fatal for one in findings)


def test_a_file_that_ends_the_process_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ValueError, match=rf"^loss.name: {path} cannot be imported: SystemExit: 3$"):
        losses.build(f"{path}:Mine")


def test_losses_of_ones_own_are_known_also_inside_others(tmp_path: Path) -> None:
    class Here(Loss):
        def forward(self, batch, totals=None):
            return LossOutput(-batch.chosen.sum_logps)

    path = written(tmp_path)
    assert losses.is_own(losses.build(f"{path}:Mine"))
    assert losses.is_own(losses.build(f"{path}:function"))
    assert losses.is_own(losses.build({"name": "group_robust", "base": f"{path}:Mine"}))
    assert losses.is_own(Here())
    assert not losses.is_own(losses.build({"name": "weighted_sum", "parts": ["dpo", "sft"]}))
