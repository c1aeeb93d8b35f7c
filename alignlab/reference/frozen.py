"""The models that may play the reference or a reward scorer: how each is named, and how it is run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from alignlab import models
from alignlab.cache import fingerprint_model, fingerprint_path
from alignlab.runtime import load_sharded, unsharded

REFERENCE = "reference"  # among frozen scorers, by name
logger = logging.getLogger(__name__)


class FrozenModel:
    """A model whose scores do not change in a run: how to name it, and how to run it.

    ``run`` yields a module to score with; ``fingerprint`` names its weights, adapter, quantisation and dtype.
    """

    description: str
    from_policy = True  # made from the policy: before the first step both must agree

    def loaded(self) -> nn.Module:
        """Returns the module that scores, in memory."""
        raise NotImplementedError

    def policy_is_trained(self) -> None:
        """Is told when the policy's weights are about to change."""

    def fingerprint(self, compute_dtype: str) -> str:
        """Returns the identity under which this model's scores are cached."""
        raise NotImplementedError

    @contextmanager
    def run(self) -> Iterator[nn.Module]:
        """Yields the model, ready to score; loads or switches to it first where it has to."""
        raise NotImplementedError
        yield


def name_of(model: Any) -> str:
    """Returns where a model in memory came from, as far as it knows."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)


class PolicyAtStart(FrozenModel):
    """The policy as it is before the first step: it can score only before training starts."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.description, self.trained = policy, f"{name_of(policy)} as it was before training", False

    def loaded(self) -> nn.Module:
        policy: nn.Module = self.policy
        return policy

    def fingerprint(self, compute_dtype: str) -> str:
        adapter = self.policy.active_adapter if models.is_peft(self.policy) else None
        return fingerprint_model(self.policy, adapter=adapter, compute_dtype=compute_dtype)

    def policy_is_trained(self) -> None:
        self.trained = True

    @contextmanager
    def run(self) -> Iterator[nn.Module]:
        if self.trained:
            raise ValueError(
                "some completions have no cached reference scores, and the policy that was the reference is already "
                "trained: give every dataset to the trainer when it is made, or pass ref_model"
            )
        yield self.policy


class AdapterOff(FrozenModel):
    """The policy's base model, with its adapter switched off."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.description = policy, f"{name_of(policy)} with its adapter off"

    def loaded(self) -> nn.Module:
        policy: nn.Module = self.policy
        return policy

    def fingerprint(self, compute_dtype: str) -> str:
        return fingerprint_model(self.policy, adapter=None, compute_dtype=compute_dtype)

    @contextmanager
    def run(self) -> Iterator[nn.Module]:
        with self.policy.disable_adapter():
            yield self.policy


class OtherAdapter(FrozenModel):
    """The policy's base model under another, frozen adapter that stands beside the trained one."""

    def __init__(self, policy: Any, name: str) -> None:
        self.policy, self.name, self.description = policy, name, f"{name_of(policy)} with the adapter {name!r}"

    @classmethod
    def load(cls, policy: Any, folder: str, name: str) -> OtherAdapter:
        """Loads the adapter saved in ``folder`` beside the policy's own."""
        policy.load_adapter(folder, adapter_name=name, is_trainable=False)
        other = cls(policy, name)
        other.from_policy = False
        return other

    @classmethod
    def copy_of_active(cls, policy: Any, name: str) -> OtherAdapter:
        """Freezes a copy of the policy's active adapter as it is now."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        active = policy.active_adapter
        state = {key: value.detach().clone() for key, value in get_peft_model_state_dict(policy).items()}
        config = copy.deepcopy(policy.peft_config[active])
        config.init_lora_weights = False  # PiSSA and its kin would rewrite the shared base once more
        policy.add_adapter(name, config)
        set_peft_model_state_dict(policy, state, adapter_name=name)
        policy.set_requires_grad(name, requires_grad=False)
        return cls(policy, name)

    def loaded(self) -> nn.Module:
        policy: nn.Module = self.policy
        return policy

    def fingerprint(self, compute_dtype: str) -> str:
        return fingerprint_model(self.policy, adapter=self.name, compute_dtype=compute_dtype)

    @contextmanager
    def run(self) -> Iterator[nn.Module]:
        active = self.policy.active_adapter
        self.policy.set_adapter(self.name, inference_mode=True)
        try:
            yield self.policy
        finally:
            self.policy.set_adapter(active)


class SeparateModel(FrozenModel):
    """A model of its own, given as a module or as a path that is loaded only when it must run."""

    def __init__(
        self,
        model: nn.Module | None,
        path: str | None = None,
        load: Callable[[str], nn.Module] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        shards: str | dict[str, Any] | None = None,
    ) -> None:
        self.model, self.path, self._load, self.dtype, self.device = model, path, load, dtype, device
        self.shards = shards  # a DeepSpeed configuration: each rank then holds its part of the weights
        self.description, self.from_policy = path or f"{name_of(model)}, given as ref_model", False

    def fingerprint(self, compute_dtype: str) -> str:
        if self.model is None and self.path is not None and self.dtype is not None:
            found = fingerprint_path(self.path, dtype=self.dtype, compute_dtype=compute_dtype)
            if found is not None:
                return found
        # Rank 0 is alone here, and shards are not the bytes that count: a sharded model is loaded whole for its name.
        model: Any = self.loaded() if self.shards is None else self._whole()
        adapter = model.active_adapter if models.is_peft(model) else None
        return fingerprint_model(model, adapter=adapter, compute_dtype=compute_dtype)

    def loaded(self) -> nn.Module:
        """Returns the module, loading it if it is not in memory; its parameters take no gradient."""
        if self.model is None:
            assert self.path is not None
            assert self._load is not None
            logger.info("loading %s", self.description)
            if self.shards is not None:
                self.model = load_sharded(self._load, self.path, self.shards, self.dtype or torch.float32)
                self.model.requires_grad_(False)
                self.model.eval()  # an engine's returns nothing
                return self.model
            self.model = self._whole()
        if self.shards is not None:
            return self.model
        models.guard_quantised(self.model)
        self.model.requires_grad_(False).eval()
        return self.model if models.is_quantised(self.model) or self.device is None else self.model.to(self.device)

    def _whole(self) -> nn.Module:
        assert self.path is not None
        assert self._load is not None
        with unsharded():
            return self._load(self.path)

    def free(self) -> None:
        """Drops a model that was loaded from a path."""
        if self.path is not None:
            self.model = None

    @contextmanager
    def run(self) -> Iterator[nn.Module]:
        yield self.loaded()
