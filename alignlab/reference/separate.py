"""Frozen models with weights of their own: given as a module, copied from the policy, or loaded from a path."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from alignlab import models
from alignlab.cache import fingerprint_path
from alignlab.runtime import Numerics, check_one_device, load_sharded, unsharded

from .frozen import FrozenModel, fingerprint_as_it_is, name_of

logger = logging.getLogger(__name__)
AS_LOADED = Numerics()


def _only_scoring(model: nn.Module, device: torch.device) -> nn.Module:
    """Returns a model that takes no gradient, without dropout, where batches go; quantised weights stay in place."""
    models.guard_quantised(model)
    model.requires_grad_(False).eval()
    return model if models.is_quantised(model) else model.to(device)


class SeparateModel(FrozenModel):
    """A model with weights of its own that was given as a module.

    Args:
        model: the module. device: where it goes. numerics: how the policy's engine computes.

    Raises:
        ValueError: its layers lie on several devices.
    """

    def __init__(self, model: nn.Module, device: torch.device, numerics: Numerics = AS_LOADED) -> None:
        check_one_device("ref_model", model)
        self.model, self.device, self.numerics = model, device, numerics
        self.description, self.from_policy = f"{name_of(model)}, given as ref_model", False

    @classmethod
    def copy_of(cls, policy: nn.Module, device: torch.device, numerics: Numerics = AS_LOADED) -> SeparateModel:
        """Freezes a copy of the policy's weights as they are now."""
        copied = cls(copy.deepcopy(policy), device, numerics)
        copied.description, copied.from_policy = f"a copy of {name_of(policy)} before training", True
        return copied

    def loaded(self) -> nn.Module:
        self.numerics.settle(self.model)
        return _only_scoring(self.model, self.device)

    def fingerprint(self, compute_dtype: str) -> str:
        return fingerprint_as_it_is(self.loaded(), compute_dtype)

    @contextmanager
    def run(self) -> Iterator[nn.Module]:
        yield self.loaded()


@dataclass(frozen=True)
class Loading:
    """How a model comes from its path into memory.

    Attributes:
        load: loads a model from a path, as the policy was loaded. device: where it then goes.
        dtype: of its weights; None where only the loaded model tells.
        shards: a DeepSpeed configuration: each rank then holds its part of the weights.
        numerics: how the policy's engine computes, and so does what is loaded.
        revision: of a hub id.
    """

    load: Callable[[str], nn.Module]
    device: torch.device
    dtype: torch.dtype | None = None
    shards: str | dict[str, Any] | None = None
    numerics: Numerics = AS_LOADED
    revision: str | None = None


class ModelFromPath(FrozenModel):
    """A model with weights of its own, given as a path that is loaded only when it must run."""

    def __init__(self, path: str, loading: Loading) -> None:
        self.path, self.loading = path, loading
        self.model: nn.Module | None = None
        self.description, self.from_policy = path, False

    @classmethod
    def start_of(cls, policy: Any, new_adapter: Any | None, loading: Loading, *, moves: bool) -> ModelFromPath:
        """Loads the policy's own starting point again from its path: ZeRO-3 holds but shards of the policy.

        Raises:
            ValueError: the reference is to move, or the policy did not start from the weights at its path.
        """
        if moves:
            raise ValueError("sync_ref_model: not with shards of the policy or the reference; use ZeRO-2 for both")
        path = name_of(policy)
        folder = models.saved_folder(path, loading.revision)
        if folder is None or (models.is_peft(policy) and new_adapter is None):
            raise ValueError(
                "under ZeRO-3, or with reference_deepspeed, the reference is loaded from the policy's path, but the "
                f"policy ({path}) was not loaded from a folder or the hub, or continues an adapter; give "
                "ref_model_name_or_path"
            )
        again = cls(str(folder), loading)
        again.description, again.from_policy = f"{path} as it was before training", True
        return again

    def loaded(self) -> nn.Module:
        """Returns the module, loading it if it is not in memory; its parameters take no gradient."""
        if self.model is None:
            logger.info("loading %s", self.description)
            how = self.loading
            whole = how.shards is None
            self.model = _only_scoring(self._whole(), how.device) if whole else self._sharded(how.shards or {})
        return self.model

    def fingerprint(self, compute_dtype: str) -> str:
        dtype = self.loading.dtype
        if self.model is None and dtype is not None:
            found = fingerprint_path(self.path, dtype, compute_dtype, revision=self.loading.revision)
            if found is not None:
                return found
        # Rank 0 is alone here, and shards are not the bytes that count: a sharded model is loaded whole for its name.
        return fingerprint_as_it_is(self.loaded() if self.loading.shards is None else self._whole(), compute_dtype)

    @contextmanager
    def run(self) -> Iterator[nn.Module]:
        yield self.loaded()

    def free(self) -> None:
        self.model = None

    def _whole(self) -> nn.Module:
        with unsharded():
            model = self.loading.load(self.path)
        self.loading.numerics.settle(model)
        return model

    def _sharded(self, shards: str | dict[str, Any]) -> nn.Module:
        how = self.loading
        dtype, autocast = how.dtype or torch.float32, how.numerics.autocast
        engine: nn.Module = load_sharded(how.load, self.path, shards, dtype, autocast)
        engine.requires_grad_(False)
        engine.eval()  # an engine's returns nothing
        return engine
