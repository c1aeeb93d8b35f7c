"""Modules under their wrappers, and their modes left as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignlab.runtime.modules import evaluating, unwrap


def fail_within(model: nn.Module) -> None:
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError("within")


def test_evaluating_leaves_every_modules_mode_as_it_was() -> None:
    """Also where it differs between modules, and where what runs within fails."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).train()
    model[1].eval()
    with pytest.raises(RuntimeError, match="within"):
        fail_within(model)
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


def test_unwrap_goes_through_every_wrapper() -> None:
    """An engine's ``module`` within torch.compile's ``_orig_mod``; a model's own attribute of that name may be text."""
    inner, engine, compiled = nn.Linear(1, 1), nn.Module(), nn.Module()
    engine.module, compiled._orig_mod = inner, engine
    assert unwrap(compiled) is inner
    inner.module = "not a module"
    assert unwrap(compiled) is inner
