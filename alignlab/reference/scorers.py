"""The frozen scorers: the reference (cached, live, adapter off, none) and reward adapters."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignlab import models, scoring
from alignlab.cache import COLUMN, ScoreStore
from alignlab.config import ModelOptions, PreferenceConfig
from alignlab.losses import Needs
from alignlab.runtime import evaluating, is_sharded_at_load, unsharded
from alignlab.scoring import Head, head_of

from .frozen import REFERENCE, AdapterOff, FrozenModel, OtherAdapter, PolicyAtStart, SeparateModel, name_of

logger = logging.getLogger(__name__)
Autocast = Callable[[], AbstractContextManager[Any]]


UNPROVEN: Any = object()  # in the place of a head that was not looked at yet


class ScoreReader:
    """Reads cached per-token scores by content key."""

    def __init__(self, store: ScoreStore, column: str) -> None:
        self.store, self.column = store, column

    def get(self, keys: Sequence[bytes]) -> Sequence[np.ndarray]:
        """Returns one array, as long as the completion, for each key."""
        return self.store.get(keys, self.column)


@dataclass
class Frozen:
    """One frozen scorer in use.

    Attributes:
        name: "reference", or the name of a reward scorer.
        model: how to run it.
        cached: whether its scores come from the cache.
        forwards: completions scored for the cache so far, or batches scored live, on this rank.
        head: the model's LM head, once it is proven.
        hidden: dtype in which the cache also keeps the final hidden states, from which the head makes whole
            distributions, or None.
    """

    name: str
    model: FrozenModel
    cached: bool
    store: ScoreStore | None = None
    forwards: int = 0
    head: Head | None = field(default=UNPROVEN, repr=False)
    hidden: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """What the cache keeps of each completion."""
        return (COLUMN,) if self.hidden is None else (COLUMN, f"hidden_{self.hidden}")

    def keep_head(self, module: nn.Module) -> None:
        """Keeps a frozen copy of the model's LM head, which is all that whole distributions need beside the cache.

        Raises:
            ValueError: the head cannot be proven to be a plain one.
        """
        head = head_of(module)
        if head is None:
            raise ValueError(
                "reference: cached keeps hidden states for this loss, but the model's LM head is not a plain one that "
                "makes distributions of them; allowed here: auto, live"
            )
        self.head = replace(head, module=_copy_of(head.module))

    def reader(self, column: int = 0) -> ScoreReader:
        """Returns what the collator reads cached log-probabilities with, or (1) hidden states."""
        assert self.store is not None, "the cache is filled before it is read"
        return ScoreReader(self.store, self.columns[column])

    def live(self, layout: Mapping[str, Any], autocast: Autocast = nullcontext) -> scoring.Distributions:
        """Returns this model's distributions at the needed positions of a layout."""
        with self.model.run() as module, evaluating(module), autocast():
            if self.head is UNPROVEN:  # the weight of a sharded head is there only while the model's forward runs
                self.head = None if _is_sharded(module) else head_of(module)
            self.forwards += 1
            return scoring.distributions(module, layout, self.head)

    def live_logps(self, layout: Mapping[str, Any], autocast: Autocast = nullcontext) -> Tensor:
        """Returns this model's log-probabilities of a layout's completions, ``[F, N, T]`` float32."""
        return scoring.place(self.live(layout, autocast).logps(layout["target"]), layout)


def _is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _copy_of(module: nn.Linear) -> nn.Linear:
    """Returns a frozen copy of a head, whole on every rank."""
    if not _is_sharded(module):
        return copy.deepcopy(module).requires_grad_(False)
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters())), unsharded():
        weight, bias = module.weight.detach(), module.bias
        copied = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
        copied.load_state_dict({name: value.detach() for name, value in module.named_parameters()})
    return copied.requires_grad_(False)


def choose_mode(requested: str, needs: Needs, *, has_adapter: bool, moves: bool = False) -> str:
    """Returns "none", "cached", "live" or "adapter_off" for the reference, by what the loss needs.

    A reference that ``moves`` with the policy is live. Raises ValueError where the requested mode cannot give what
    the loss needs.
    """
    if not needs.reference:
        if moves:
            raise ValueError("sync_ref_model: this loss needs no reference, so there is none to move")
        return "none"
    if requested == "none":
        raise ValueError("reference: none was asked for, but the loss needs a reference; allowed: auto, cached, live")
    if requested == "auto":
        return "live" if needs.kl or moves else "cached"
    if requested == "adapter_off" and not has_adapter:
        raise ValueError("reference: adapter_off needs a policy with an adapter; allowed: auto, cached, live")
    return requested


def reference_model(
    policy: Any,
    *,
    mode: str,
    new_adapter: Any | None,
    ref_model: nn.Module | str | None,
    ref_adapter: str | None,
    load: Callable[[str], nn.Module],
    dtype: torch.dtype | None,
    device: torch.device,
    moves: bool = False,
    shards: str | dict[str, Any] | None = None,
) -> FrozenModel:
    """Returns the model that plays the reference; one that ``moves`` has weights of its own, apart from the policy's.

    By default the policy as it is before the first step: with a new adapter, the policy with the adapter off; with
    an adapter that was trained before, that adapter as it is now; otherwise the weights themselves, copied only
    where the reference must stay live.

    Args:
        policy: the model to be trained, adapter injected. mode: from ``choose_mode``.
        new_adapter: the PEFT configuration of an adapter that was injected just now, or None.
        ref_model: another model, or its path. ref_adapter: folder of another adapter for the policy's base.
        load: loads a model from a path, as the policy was loaded.
        shards: a DeepSpeed configuration by which a reference with weights of its own is sharded.

    Raises:
        ValueError: where the initialisation of the adapter changed the base weights, so that no adapter-off
            model is the reference (PiSSA, OLoRA, LoftQ: 0.3 to 0.4 nats off).
    """
    if ref_model is not None and ref_adapter is not None:
        raise ValueError("ref_model and ref_adapter were both given; give one")
    if isinstance(ref_model, str):
        return SeparateModel(None, ref_model, load, dtype, device, shards)
    if ref_model is not None:
        return SeparateModel(ref_model, device=device)
    if ref_adapter is not None:
        if not models.is_peft(policy):
            raise ValueError("ref_adapter needs a policy with an adapter; for a full model give ref_model_name_or_path")
        return OtherAdapter.load(policy, ref_adapter, REFERENCE)
    own_weights = mode == "live" and shards is not None and not models.is_peft(policy)
    if mode != "adapter_off" and (is_sharded_at_load() or own_weights):
        if moves:
            raise ValueError("sync_ref_model: not with shards of the policy or the reference; use ZeRO-2 for both")
        return _again_from_path(policy, new_adapter, load, dtype, device, shards)
    if mode == "adapter_off" or (new_adapter is not None and not moves):
        if new_adapter is not None and not models.leaves_base_alone(new_adapter):
            raise ValueError(
                f"peft.init_lora_weights: {new_adapter.init_lora_weights!r} rewrites the base weights, so the policy "
                "with its adapter off is not the reference; give ref_model_name_or_path (the same base model), which "
                "is loaded only while its scores are missing from the cache"
            )
        return AdapterOff(policy)
    if mode == "cached":
        return PolicyAtStart(policy)
    if models.is_peft(policy):
        return OtherAdapter.copy_of_active(policy, REFERENCE)
    copied = SeparateModel(copy.deepcopy(policy), device=device)
    copied.description, copied.from_policy = f"a copy of {name_of(policy)} before training", True
    return copied


def _again_from_path(
    policy: Any,
    new_adapter: Any | None,
    load: Callable[[str], nn.Module],
    dtype: torch.dtype | None,
    device: torch.device,
    shards: str | dict[str, Any] | None,
) -> FrozenModel:
    """Returns the policy's own starting point, loaded again from its path: ZeRO-3 holds but shards of the policy."""
    path = name_of(policy)
    if not Path(path).exists() or (models.is_peft(policy) and new_adapter is None):
        raise ValueError(
            "under ZeRO-3, or with reference_deepspeed, the reference is loaded from the policy's path, but the policy "
            f"({path}) was not loaded from a folder, or continues an adapter; give ref_model_name_or_path"
        )
    copied = SeparateModel(None, path, load, dtype, device, shards)
    copied.description, copied.from_policy = f"{path} as it was before training", True
    return copied


def frozen_scorers(
    policy: Any,
    args: PreferenceConfig,
    needs: Needs,
    options: ModelOptions,
    new_adapter: Any | None,
    ref_model: nn.Module | str | None,
) -> dict[str, Frozen]:
    """Returns the frozen models that a loss needs, by name: "reference", and the reward scorers it names."""
    load = partial(models.load_model, options)
    moves = args.sync_ref_model
    mode = choose_mode(args.reference, needs, has_adapter=models.is_peft(policy), moves=moves)
    frozen: dict[str, Frozen] = {}
    if mode != "none":
        model = reference_model(
            policy,
            mode=mode,
            new_adapter=new_adapter,
            ref_model=ref_model,
            ref_adapter=args.ref_adapter,
            load=load,
            dtype=None if models.is_quantised(policy) else next(policy.parameters()).dtype,
            device=args.device,
            moves=moves,
            shards=args.reference_deepspeed,
        )
        frozen[REFERENCE] = Frozen(REFERENCE, model, cached=mode == "cached")
        if mode == "cached" and needs.kl:
            frozen[REFERENCE].hidden = args.reference_hidden_dtype
    for name in needs.scorers:
        path = (args.scorers or {}).get(name)
        if path is None:
            raise ValueError(f"scorers: the loss needs a frozen model {name!r}; give scorers: {{{name}: PATH}}")
        frozen[name] = Frozen(name, SeparateModel(None, path, load, None, args.device), cached=True)
    return frozen
