"""Liger's layer kernels: refused without the package, taken where they compute what the model computes.

Liger itself runs on a GPU only; here a package of its name replaces norms as it does, rightly or wrongly.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
import transformers.integrations.liger as integration
from making import make_model, make_rows
from torch import Tensor, nn

from alignlab.config import PreferenceConfig
from alignlab.config import arguments as config_arguments
from alignlab.scoring import use_liger
from alignlab.training import PreferenceTrainer


def install(monkeypatch: pytest.MonkeyPatch, factor: float | None) -> list[dict[str, Any]]:
    """Installs a package that scales every norm by a factor, or changes nothing; returns what it was asked for."""
    asked: list[dict[str, Any]] = []

    def forward(module: Any, hidden: Tensor) -> Tensor:
        assert factor is not None
        normal = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + module.variance_epsilon)
        scaled: Tensor = factor * module.weight * normal
        return scaled

    def patch(model: nn.Module, **kernels: Any) -> None:
        asked.append(kernels)
        for module in model.modules():
            if factor is not None and type(module).__name__ == "LlamaRMSNorm":
                module.forward = MethodType(forward, module)

    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    inner._apply_liger_kernel_to_instance = patch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", inner)
    for module in (integration, config_arguments):
        monkeypatch.setattr(module, "is_liger_kernel_available", lambda: True)
    return asked


def test_the_package_is_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^use_liger_kernel: needs the package liger-kernel, which is not installed"):
        PreferenceConfig(output_dir=str(tmp_path), use_liger_kernel=True)


@pytest.mark.parametrize("name", ["cross_entropy", "fused_linear_cross_entropy"])
def test_its_losses_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 1.0)
    with pytest.raises(ValueError, match=f"^liger_kernel_config.{name}: it is a loss over labels"):
        PreferenceConfig(output_dir=str(tmp_path), use_liger_kernel=True, liger_kernel_config={name: True})


def test_a_run_uses_kernels_that_agree_and_never_the_losses(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked for before the reference is scored, and again by the stock Trainer, in the same words."""
    asked = install(monkeypatch, 1.0)
    args = PreferenceConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_liger_kernel=True,
        liger_kernel_config={"rope": False},
    )
    run = PreferenceTrainer(make_model(), args, "dpo", make_rows(8), None, tokenizer)
    without = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    assert asked == [without]
    run.train()
    assert asked == [without, without]
    assert run._numerics.name(torch.float32) == "float32 with liger (rope off)"
    assert run.state.log_history[-1]["train_loss"] == pytest.approx(0.693147, abs=1e-5)


def test_kernels_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 1.5)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM computes something else: log-probabilities differ by 0\."):
        use_liger(make_model(), None)


def test_a_model_that_it_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    with pytest.raises(ValueError, match="Liger has no kernels for LlamaForCausalLM; leave it out"):
        use_liger(make_model(), None)
