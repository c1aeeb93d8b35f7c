"""What a frozen model is, how it is named and run; and those that share the policy's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from alignlab import models
from alignlab.cache import fingerprint_model

REFERENCE = "reference"  # among frozen scorers, by name


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

    def free(self) -> None:
        """Drops from memory what can be loaded again."""


def name_of(model: Any) -> str:
    """Returns where a model in memory came from, as far as it knows."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)


def fingerprint_as_it_is(model: Any, compute_dtype: str) -> str:
    """Returns the identity of a model under the adapter that is active, if it has any."""
    adapter = model.active_adapter if models.is_peft(model) else None
    return fingerprint_model(model, adapter=adapter, compute_dtype=compute_dtype)


class PolicyAtStart(FrozenModel):
    """The policy as it is before the first step: it can score only before training starts."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.description, self.trained = policy, f"{name_of(policy)} as it was before training", False

    def loaded(self) -> nn.Module:
        policy: nn.Module = self.policy
        return policy

    def fingerprint(self, compute_dtype: str) -> str:
        return fingerprint_as_it_is(self.policy, compute_dtype)

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
    """The policy's base model, with its adapter switched off.

    Args:
        policy: a model with an adapter.
        new_adapter: the PEFT configuration of the adapter, where it was injected just now.

    Raises:
        ValueError: the initialisation of the adapter changed the base weights, so that no adapter-off model is the
            reference (PiSSA, OLoRA, CorDA: 0.3 to 0.4 nats off).
    """

    def __init__(self, policy: Any, new_adapter: Any | None = None) -> None:
        if new_adapter is not None and not models.leaves_base_alone(new_adapter):
            raise ValueError(
                f"peft.init_lora_weights: {new_adapter.init_lora_weights!r} rewrites the base weights, so the policy "
                "with its adapter off is not the reference; give ref_model_name_or_path (the same base model), which "
                "is loaded only while its scores are missing from the cache"
            )
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
        """Loads the adapter saved in ``folder`` beside the policy's own.

        Raises:
            ValueError: the policy has none.
        """
        if not models.is_peft(policy):
            raise ValueError("ref_adapter needs a policy with an adapter; for a full model give ref_model_name_or_path")
        models.refuse_unrepeatable(folder, beside=True)
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
