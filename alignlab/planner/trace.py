"""Runs one training step on tensors without storage and follows every byte that they would take."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignlab import models, scoring
from alignlab.data import Mode, ScoredSequence, layout_fields
from alignlab.scoring import FLAT, TREES, Head, UnsupportedAttention, UnsupportedModel, attention_caps

from .four_bit import FourBitLinear, quantise

WEIGHTS, GRADIENTS, ACTIVATIONS, HEAD = "weights", "gradients", "activations", "logits"


@dataclass(frozen=True)
class StepShape:
    """What decides how much memory a micro-batch of one rank takes.

    Attributes:
        dtype: of the weights. compute: of the arithmetic under autocast, or None.
        four_bit: whether the base is quantised; double_quant: whether its scales are as well.
        peft: options of a new adapter, or None.
        pairs: rows of the micro-batch. completions: scored with gradient, of each row.
        prompt, completion: tokens of each.
        live: the reference runs beside the policy: "none", "logps", or "kl" with whole distributions.
        device: the type of device that is planned for; an accelerator makes larger blocks of logits than a CPU.
        outputs: of a value head in the place of the LM head; 0: a language model.
    """

    dtype: torch.dtype = torch.float32
    compute: torch.dtype | None = None
    four_bit: bool = False
    double_quant: bool = True
    peft: Mapping[str, Any] | None = None
    checkpointing: bool = False
    pairs: int = 1
    completions: int = 2
    prompt: int = 512
    completion: int = 512
    live: Literal["none", "logps", "kl"] = "none"
    device: str = "cuda"
    outputs: int = 0


@dataclass(frozen=True)
class Traced:
    """What a step takes on one rank, in bytes, before the optimiser's states.

    Attributes:
        peak: bytes by kind at the moment when their sum was largest.
        weights: all weights as they are stored. trained, total: numbers of parameters. largest: of one module.
    """

    peak: Mapping[str, float]
    weights: int
    trained: int
    total: int
    largest: int


class MemoryTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages of fake tensors: how much there is of each kind, and was at the peak.

    Args:
        shares: how much of a kind one rank holds: 1/N of what ZeRO shards.

    Attributes:
        now: bytes alive, by kind. peak: those of the moment at which the sum of this rank's share was largest.
    """

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shares = dict(shares or {})
        self.now: Counter[str] = Counter()
        self.peak: dict[str, float] = {}
        self._kind = ACTIVATIONS
        self._seen: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        node = torch._C._current_autograd_node()
        kind = HEAD if node is not None and "ChunkedScores" in node.name() else self._kind
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                self._see(tensor, kind)
        return result

    def _see(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = (kind, storage.nbytes())
        weakref.finalize(storage, self._forget, key)
        self.now[kind] += storage.nbytes()
        mine = self.mine()
        if sum(mine.values()) > sum(self.peak.values()):
            self.peak = mine

    def mine(self) -> dict[str, float]:
        """Returns what this rank holds now, by kind."""
        return {kind: size * self.shares.get(kind, 1.0) for kind, size in self.now.items()}

    def _forget(self, key: int) -> None:
        kind, size = self._seen.pop(key)
        self.now[kind] -= size

    def rename(self, tensor: Tensor, kind: str) -> None:
        """Moves the storage of a tensor to another kind."""
        key = tensor.untyped_storage()._cdata
        if key in self._seen:
            size = self._seen[key][1]
            self._forget(key)
            self._seen[key] = (kind, size)
            self.now[kind] += size

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """Within it, new storages are of this kind."""
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._kind = before


def trace_step(config: Any, shape: StepShape, shares: Mapping[str, float] | None = None) -> Traced:
    """Returns what one forward and backward of a model would take, by running them on fake tensors.

    Nothing is loaded and nothing is computed; the model's own code, the packed rows and the chunked LM head run as they
    do in training, on tensors that have a shape and a dtype but no storage.

    Args:
        config: the model's transformers configuration.
        shares: how much of "weights" and "gradients" one rank holds.

    Raises:
        ValueError: the model's code looks at values, or has no rules for tensors without storage.
    """
    half = shape.compute is not None or shape.dtype.itemsize == 2
    attention = TREES if half and shape.device == "cuda" else FLAT
    try:
        return _trace(_uncapped(config) if attention == TREES else config, shape, shares, attention)
    except (UnsupportedModel, UnsupportedAttention):  # what packed rows cannot take: plain, padded rows
        return _trace(config, shape, shares, "eager")
    except (RuntimeError, NotImplementedError) as error:
        kind = getattr(config, "model_type", type(config).__name__)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"a {kind} model in {shape.dtype} cannot be planned, because its code does not run on tensors without "
            f"storage: {reason}"
        ) from error


def _uncapped(config: Any) -> Any:
    """Returns a config without a soft-cap of attention, beside which backward keeps what it keeps without one."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name in attention_caps(text):
        setattr(text, name, None)
    return config


def _trace(config: Any, shape: StepShape, shares: Mapping[str, float] | None, attention: str) -> Traced:
    trace = MemoryTrace(shares)
    with torch.device("meta"):
        model = _policy(config, shape, attention)
    with FakeTensorMode() as fake, trace:
        with trace.making(WEIGHTS):
            _allot(model)
        weights = trace.now[WEIGHTS]
        layout = {
            name: fake.from_tensor(value) if isinstance(value, Tensor) else value
            for name, value in _layout(shape, "padded" if attention == "eager" else "flat").items()
        }
        layout["kernels"] = attention == TREES  # by the device that is planned for, not by that of fake tensors
        trained = [one for one in model.parameters() if one.requires_grad]
        for one in trained:
            one.register_post_accumulate_grad_hook(lambda weight: trace.rename(weight.grad, GRADIENTS))
        _run(model, layout, shape, trace)
    sizes = [sum(map(Tensor.numel, one.parameters(recurse=False))) for one in model.modules()]
    packed = [one for one in model.modules() if isinstance(one, FourBitLinear)]
    count = sum(map(Tensor.numel, model.parameters()))
    count += sum(one.in_features * one.out_features - one.weight.numel() for one in packed)
    return Traced(trace.peak, weights, sum(map(Tensor.numel, trained)), count, max(sizes))


def _run(model: Any, layout: dict[str, Any], shape: StepShape, trace: MemoryTrace) -> None:
    """Runs the reference where it is live, the policy, and the backward of a loss of its scores."""
    autocast = torch.autocast("cpu", shape.compute) if shape.compute is not None else nullcontext()
    if shape.outputs:
        with autocast:
            found = scoring.values(model, layout).sum()
        found.backward()  # type: ignore[no-untyped-call]
        return
    module = model.get_output_embeddings()
    head = Head(module, blocks=shape.device) if type(module) is nn.Linear else None
    handles = [
        module.register_forward_pre_hook(lambda *_: setattr(trace, "_kind", HEAD)),
        module.register_forward_hook(lambda *_: setattr(trace, "_kind", ACTIVATIONS)),
    ]
    reference = None
    with autocast:
        if shape.live != "none":
            reference = scoring.distributions(model, layout, head)
            reference.logps(layout["target"])
        scores = scoring.score(model, layout, head=head, reference=reference if shape.live == "kl" else None)
    loss = torch.stack([value.sum() for value in scores.values()]).sum()
    for handle in handles:
        handle.remove()
    del scores, reference
    loss.backward()  # type: ignore[no-untyped-call]


def _policy(config: Any, shape: StepShape, attention: str) -> Any:
    """Returns the policy as a run would load it, on fake tensors."""
    auto = AutoModelForCausalLM
    if shape.outputs:
        auto, config = AutoModelForSequenceClassification, copy.deepcopy(config)
        config.num_labels, config.get_text_config().pad_token_id = shape.outputs, 0
    model: Any = auto.from_config(config, dtype=shape.dtype, attn_implementation=attention)
    if shape.four_bit:
        quantise(model, shape.double_quant, shape.checkpointing)
    if shape.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if shape.peft is not None:
        from peft import get_peft_model

        adapter = models.peft_options(shape.peft, shape.outputs)
        if hasattr(adapter, "init_lora_weights"):
            adapter.init_lora_weights = True  # how it starts takes no memory; CorDA would ask for rows
        model = get_peft_model(model, adapter, low_cpu_mem_usage=True)
        if shape.checkpointing:
            model.enable_input_require_grads()
    return model.train()


def _allot(model: nn.Module) -> None:
    """Puts tensors of the device that trains in the place of those on the meta device; what was tied stays tied."""
    made: dict[int, Tensor] = {}

    def of(old: Tensor) -> Tensor:
        if id(old) not in made:
            new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
            made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        return made[id(old)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors |= {name: of(old) for name, old in tensors.items() if old is not None}


def _layout(shape: StepShape, mode: Mode) -> dict[str, Any]:
    """Returns the micro-batch: rows of different prompts, packed or padded."""

    def one(row: int) -> ScoredSequence:
        prompt, completion = np.full(shape.prompt, row), np.zeros(shape.completion, dtype=np.int64)
        return ScoredSequence(prompt, completion, np.ones(shape.completion, dtype=bool))

    rows = [one(row) for row in range(shape.pairs)]
    return layout_fields({str(field): rows for field in range(shape.completions)}, 0, mode)
