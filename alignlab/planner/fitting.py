"""Whether a run fits its GPUs, and the smallest change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from alignlab.config import RunConfig, checkpoints_activations, load_config
from alignlab.runtime import Machine

from .memory import GB, Estimate, estimate
from .micro_batch import Lengths, completions_of
from .resolve import resolve
from .zero import Zero


@dataclass(frozen=True)
class Change:
    """Overrides that together make a run smaller, and what it then takes."""

    words: list[str]
    peak: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What ``alignlab plan`` says.

    Attributes:
        tokens: of one packed micro-batch. changes: tried in order, up to the first that fits.
    """

    estimate: Estimate
    gpus: int
    gpu_memory: float
    tokens: int
    fits: bool
    changes: list[Change] = field(default_factory=list)


def plan(
    config: RunConfig,
    gpus: int = 1,
    gpu_memory: float = 80.0,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Plan:
    """Estimates a run's memory without loading a weight, and looks for the smallest change that makes it fit.

    Args:
        gpus: ranks, one a GPU. gpu_memory: of each, in GB (1e9 bytes).
            What the config leaves to the machine is decided as on a GPU that has bfloat16 and TF32.
        prompt_tokens, completion_tokens: of the longest micro-batch's rows; by default half of ``max_length`` each.

    Raises:
        ValueError: nonsensical numbers, or an architecture that cannot be run on tensors without storage.
    """
    if gpus < 1 or not gpu_memory > 0:
        raise ValueError(
            f"--gpus, --gpu-memory: expected at least one GPU and more than 0 GB, found {gpus}, {gpu_memory}"
        )
    lengths = Lengths.of(config, prompt_tokens, completion_tokens)
    device = Machine("cuda", "planned", bf16=True, tf32=True, memory=gpu_memory)
    config, _ = resolve(config, device, gpus, lengths)

    def peak(one: RunConfig) -> Estimate:
        return estimate(one, gpus, lengths)

    first = peak(config)
    pairs = config.training["per_device_train_batch_size"]
    tokens = pairs * (lengths.prompt + completions_of(config) * lengths.completion)
    fits = first.peak <= gpu_memory * GB
    result = Plan(first, gpus, gpu_memory, tokens, fits)
    if not fits:
        for words in _changes(config, gpus):
            size = peak(load_config(config.to_dict(), words)).peak
            result.changes.append(Change(words, size, size <= gpu_memory * GB))
            if result.changes[-1].fits:
                break
    return result


def _changes(config: RunConfig, gpus: int) -> Iterator[list[str]]:
    """Yields overrides to try, each list adding to the one before: the cheapest for the result and its speed first."""
    training, words = config.training, []
    if not checkpoints_activations(training):
        name = "gradient" if training.get("activation_checkpointing") is None else "activation"
        words += [f"--{name}_checkpointing", "true"]
        yield list(words)
    pairs, accumulation = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    base = list(words)
    while pairs > 1:
        smaller = max(one for one in range(1, pairs) if pairs % one == 0)
        accumulation, pairs = accumulation * (pairs // smaller), smaller
        smaller_batch = f"--per_device_train_batch_size {pairs} --gradient_accumulation_steps {accumulation}"
        words = base + smaller_batch.split()
        yield list(words)
    zero = Zero.of(training, 1)
    stage, more = zero.stage, gpus > 1 and not zero.fsdp  # DeepSpeed cannot stand beside FSDP
    if not training.get("bf16") and not training.get("fp16") and config.model.dtype == "float32":
        words += ["--bf16", "true"]
    for higher in range(max(stage + 1, 2), 4) if more else ():
        yield [*words, "--deepspeed", f"zero{higher}.json"]
    if more:
        yield [*words, "--deepspeed", "zero3_offload.json"]
    if config.peft is None and config.model.adapter is None:
        words += ["--peft.r", "16"]
        yield list(words)
    if not config.model.load_in_4bit:
        words += ["--model.load_in_4bit", "true"]
        yield list(words)
