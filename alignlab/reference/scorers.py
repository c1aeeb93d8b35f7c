"""The frozen scorers: the reference (cached, live, adapter off, none) and reward adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from alignlab import models, scoring
from alignlab.cache import COLUMN, ScoreStore
from alignlab.config import ModelOptions, PreferenceConfig
from alignlab.losses import Needs
from alignlab.runtime import Numerics, evaluating, is_sharded_at_load, unsharded
from alignlab.scoring import Head, LazyHead, head_of

from .frozen import REFERENCE, AdapterOff, FrozenModel, OtherAdapter, PolicyAtStart
from .separate import Loading, ModelFromPath, SeparateModel

Autocast = Callable[[], AbstractContextManager[Any]]


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
        lazy_head: the model's LM head, proven at its first use.
        numerics: how the policy's engine computes, and so does this model.
        hidden: dtype in which the cache also keeps the final hidden states, from which the head makes whole
            distributions, or None.
    """

    name: str
    model: FrozenModel
    cached: bool
    store: ScoreStore | None = None
    forwards: int = 0
    lazy_head: LazyHead = field(default_factory=LazyHead, repr=False)
    hidden: str | None = None
    numerics: Numerics = field(default_factory=Numerics)

    @contextmanager
    def running(self) -> Iterator[nn.Module]:
        """Yields the model, ready to score as the policy's engine computes."""
        with self.model.run() as module, self.numerics.applied(module):
            yield module

    @property
    def head(self) -> Head | None:
        """The model's LM head, once it is proven to be a plain one."""
        return self.lazy_head.kept

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
        self.lazy_head.keep(replace(head, module=_copy_of(head.module)))

    def reader(self, column: int = 0) -> ScoreReader:
        """Returns what the collator reads cached log-probabilities with, or (1) hidden states."""
        assert self.store is not None, "the cache is filled before it is read"
        return ScoreReader(self.store, self.columns[column])

    def live(self, layout: Mapping[str, Any], autocast: Autocast = nullcontext) -> scoring.Distributions:
        """Returns this model's distributions at the needed positions of a layout."""
        with self.running() as module, evaluating(module), autocast():
            if not self.lazy_head.known and _is_sharded(module):
                self.lazy_head.keep(None)  # the weight of a sharded head is there only while the model's forward runs
            self.forwards += 1
            return scoring.distributions(module, layout, self.lazy_head.of(module))

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
        return "live" if needs.kl or needs.online or moves else "cached"
    if requested == "cached" and needs.online:
        raise ValueError("reference: cached cannot hold answers that the policy has yet to draw; allowed: auto, live")
    if requested == "adapter_off" and not has_adapter:
        raise ValueError("reference: adapter_off needs a policy with an adapter; allowed: auto, cached, live")
    return requested


def reference_model(
    policy: Any,
    args: PreferenceConfig,
    mode: str,
    new_adapter: Any | None,
    ref_model: nn.Module | str | None,
    loading: Loading,
) -> FrozenModel:
    """Returns the model that plays the reference; one that moves has weights of its own, apart from the policy's.

    What was asked for comes first. By default it is the policy as it is before the first step: with a new adapter,
    the policy with the adapter off; with an adapter that was trained before, that adapter as it is now; otherwise the
    weights themselves, copied only where the reference must stay live. Each kind says itself what it needs.

    Args:
        policy: the model to be trained, adapter injected. mode: from ``choose_mode``.
        new_adapter: the PEFT configuration of an adapter that was injected just now, or None.
        ref_model: another model, or its path. loading: how a model comes into memory from a path.
    """
    moves, has_adapter = args.sync_ref_model, models.is_peft(policy)
    if ref_model is not None and args.ref_adapter is not None:
        raise ValueError("ref_model and ref_adapter were both given; give one")
    if isinstance(ref_model, str):
        return ModelFromPath(ref_model, loading)
    if ref_model is not None:
        return SeparateModel(ref_model, loading.device, loading.numerics)
    if args.ref_adapter is not None:
        return OtherAdapter.load(policy, args.ref_adapter, REFERENCE)
    if mode == "adapter_off":
        return AdapterOff(policy, new_adapter)
    if is_sharded_at_load() or (mode == "live" and loading.shards is not None and not has_adapter):
        return ModelFromPath.start_of(policy, new_adapter, loading, moves=moves)
    if new_adapter is not None and not moves:
        return AdapterOff(policy, new_adapter)
    if mode == "cached":
        return PolicyAtStart(policy)
    if has_adapter:
        return OtherAdapter.copy_of_active(policy, REFERENCE)
    return SeparateModel.copy_of(policy, loading.device, loading.numerics)


def frozen_scorers(
    policy: Any,
    args: PreferenceConfig,
    needs: Needs,
    options: ModelOptions,
    new_adapter: Any | None,
    ref_model: nn.Module | str | None,
    numerics: Numerics,
) -> dict[str, Frozen]:
    """Returns the frozen models that a loss needs, by name: "reference", and the reward scorers it names.

    They compute as the policy's engine does, to which the policy's weights are cast for good where the engine would.
    """
    load = partial(models.load_model, options)
    has_adapter = models.is_peft(policy)
    mode = choose_mode(args.reference, needs, has_adapter=has_adapter, moves=args.sync_ref_model)
    frozen: dict[str, Frozen] = {}
    if mode != "none":
        own = next(policy.parameters()).dtype
        dtype = None if models.is_quantised(policy) else numerics.weights if numerics.stays else own
        loading = Loading(load, args.device, dtype, args.reference_deepspeed, numerics, options.revision)
        model = reference_model(policy, args, mode, new_adapter, ref_model, loading)
        frozen[REFERENCE] = Frozen(REFERENCE, model, cached=mode == "cached", numerics=numerics)
        if mode == "cached" and needs.kl:
            frozen[REFERENCE].hidden = args.reference_hidden_dtype
    for name in needs.scorers:
        path = (args.scorers or {}).get(name)
        if path is None:
            raise ValueError(f"scorers: the loss needs a frozen model {name!r}; give scorers: {{{name}: PATH}}")
        model = ModelFromPath(path, Loading(load, args.device, numerics=numerics, revision=options.revision))
        frozen[name] = Frozen(name, model, cached=True, numerics=numerics)
    numerics.settle(policy)  # after an adapter for the reference was put beside the policy's own
    return frozen
