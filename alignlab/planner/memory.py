"""Memory before it is spent: what a run takes on each GPU, whether that fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from alignlab import losses
from alignlab.config import RunConfig, find_config, load_config, read_yaml
from alignlab.reference import choose_mode

from .trace import ACTIVATIONS, GRADIENTS, HEAD, WEIGHTS, StepShape, Traced, trace_step

GB = 1e9
# What a CUDA context, its libraries and NCCL keep, and what a caching allocator cannot use for being cut up. Assumed,
# not measured: there is no GPU where the rest of this file was checked.
FRAMEWORK = 1.5 * GB
# Bytes of optimiser state for each trained parameter, by the beginning of its name; two float32 moments otherwise.
STATES = {"sgd": 0.0, "adafactor": 0.1, "lion": 4.0, "rmsprop": 4.0, "adagrad": 4.0, "adamw_bnb_8bit": 2.1}
EIGHT_BIT = {"lion_8bit": 1.1, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1, "paged_lion_8bit": 1.1}
MOST_GATHERED = 10**9  # stage3_max_live_parameters, which the shipped configs leave as DeepSpeed has it
BUCKET = 5 * 10**8  # reduce_bucket_size, where the config gives none


@dataclass(frozen=True)
class Zero:
    """What a DeepSpeed configuration says of memory: stage, what is kept on the host, elements of a bucket."""

    stage: int = 0
    offload_optimiser: bool = False
    offload_weights: bool = False
    bucket: int = 0

    @classmethod
    def read(cls, deepspeed: Any, width: int) -> Zero:
        """Reads a configuration: a dict, a file, or the name of a shipped one; None is no DeepSpeed."""
        if deepspeed is None:
            return cls()
        values = deepspeed if isinstance(deepspeed, dict) else read_yaml(find_config(deepspeed))
        zero = values.get("zero_optimization", {})
        size = zero.get("reduce_bucket_size", BUCKET)
        count = (2 if zero.get("overlap_comm") else 1) * (width**2 if size == "auto" else int(size))

        def on_host(name: str) -> bool:
            return str((zero.get(name) or {}).get("device", "none")) != "none"

        return cls(int(zero.get("stage", 0)), on_host("offload_optimizer"), on_host("offload_param"), count)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank at its fullest moment, and on disk.

    Attributes:
        gpu: bytes on the GPU by what they are for. host: bytes moved to the host's memory, for each rank.
        cache: bytes of cached scores for 1000 rows on disk. trained, total: parameters.
    """

    gpu: dict[str, float]
    host: float
    cache: float
    trained: int
    total: int

    @property
    def peak(self) -> float:
        """Bytes on the GPU altogether."""
        return sum(self.gpu.values())


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


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row's prompt and of each of its completions."""

    prompt: int
    completion: int

    @classmethod
    def of(cls, config: RunConfig, prompt: int | None = None, completion: int | None = None) -> Lengths:
        """Takes what is given; the rest by ``max_length``, half of it the prompt: as long as rows can get."""
        longest = config.training.get("max_length") or 1024
        prompt = longest // 2 if prompt is None else prompt
        completion = max(longest - prompt, 1) if completion is None else completion
        if prompt < 1 or completion < 1:
            raise ValueError(
                f"tokens of prompt and completion: expected at least 1 of each, found {prompt}, {completion}"
            )
        return cls(prompt, completion)


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
        prompt_tokens, completion_tokens: of the longest micro-batch's rows; by default half of ``max_length`` each.

    Raises:
        ValueError: nonsensical numbers, or an architecture that cannot be run on tensors without storage.
    """
    if gpus < 1 or gpu_memory <= 0:
        raise ValueError(
            f"--gpus, --gpu-memory: expected at least one GPU and more than 0 GB, found {gpus}, {gpu_memory}"
        )
    lengths = Lengths.of(config, prompt_tokens, completion_tokens)

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


def completions_of(config: RunConfig) -> int:
    """Returns how many completions of a row the policy scores with gradient."""
    needs = losses.build(config.loss).needs
    if needs.data == "labelled":
        return 1
    return 1 + needs.rejected + needs.gold


def estimate(config: RunConfig, gpus: int, lengths: Lengths, framework: float = FRAMEWORK) -> Estimate:
    """Returns what a run takes on each rank, from one step on tensors without storage and the engine's arithmetic."""
    architecture = AutoConfig.from_pretrained(
        _base_path(config), revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    )
    text = architecture.get_text_config()
    zero = Zero.read(config.training.get("deepspeed"), int(text.hidden_size))
    shape = step_shape(config, architecture, lengths, zero)
    ranks = gpus if zero.stage else 1
    shares = {WEIGHTS: 1 / ranks if zero.stage == 3 else 1.0, GRADIENTS: 1 / ranks if zero.stage >= 2 else 1.0}
    traced = trace_step(architecture, shape, shares)
    trained_bytes = traced.trained * (4 if shape.peft is not None else shape.dtype.itemsize)
    gpu = {
        "weights": traced.weights * shares[WEIGHTS],
        "gradients": traced.peak.get(GRADIENTS, 0.0),
        "optimiser": optimiser_bytes(config, traced, zero, ranks, shape),
        "activations": traced.peak.get(ACTIVATIONS, 0.0),
        "logits": traced.peak.get(HEAD, 0.0),
        "reference": _reference_bytes(config, shape, traced),
        "communication": _communication(traced, zero, gpus, shape, trained_bytes),
        "framework": framework,
    }
    # Where the optimiser steps every gradient is there, and the activations are not.
    stepping = trained_bytes * shares[GRADIENTS] * (2 if zero.stage in (1, 2) else 1)
    moving = gpu["gradients"] + gpu["activations"] + gpu["logits"]
    if stepping > moving:
        gpu |= {"gradients": stepping, "activations": 0.0, "logits": 0.0}
    host = 0.0
    if zero.offload_optimiser:
        host += gpu["optimiser"] + trained_bytes / ranks
        gpu["optimiser"] = 0.0
    if zero.offload_weights:
        host += gpu["weights"]
        gpu["weights"] = 0.0
    return Estimate(gpu, host, _cache_bytes(config, lengths, int(text.hidden_size)), traced.trained, traced.total)


def _base_path(config: RunConfig) -> str:
    """Returns the model whose architecture it is: of a folder with an adapter, the base that it names."""
    path = config.model.name_or_path
    if (Path(path) / "adapter_config.json").is_file():
        from peft import PeftConfig

        return str(PeftConfig.from_pretrained(path).base_model_name_or_path)
    return path


def step_shape(config: RunConfig, architecture: Any, lengths: Lengths, zero: Zero) -> StepShape:
    """Returns the micro-batch that a config makes, as the trace wants it."""
    training, model = config.training, config.model
    name = model.dtype if model.dtype != "auto" else str(architecture.dtype or "float32").removeprefix("torch.")
    dtype, compute = getattr(torch, name), None
    half = torch.bfloat16 if training.get("bf16") else torch.float16 if training.get("fp16") else None
    if half is not None and zero.stage:
        dtype = half  # DeepSpeed casts the model, and keeps float32 weights beside the optimiser's states
    else:
        compute = half
    adapter = config.peft
    if adapter is None and (model.adapter is not None or _base_path(config) != model.name_or_path):
        from peft import PeftConfig

        saved = PeftConfig.from_pretrained(model.adapter or model.name_or_path).to_dict()
        adapter = {name: saved[name] for name in ("peft_type", "r", "lora_alpha", "target_modules") if name in saved}
    needs = losses.build(config.loss).needs
    mode = choose_mode(
        training.get("reference", "auto"),
        needs,
        has_adapter=adapter is not None,
        moves=bool(training.get("sync_ref_model")),
    )
    live = "none" if mode in ("none", "cached") else "kl" if needs.kl else "logps"
    return StepShape(
        dtype=dtype,
        compute=compute,
        four_bit=model.load_in_4bit,
        double_quant=model.bnb_4bit_use_double_quant,
        peft=adapter,
        checkpointing=bool(training.get("gradient_checkpointing")),
        pairs=training["per_device_train_batch_size"],
        completions=completions_of(config),
        prompt=lengths.prompt,
        completion=lengths.completion,
        live=live,  # type: ignore[arg-type]
    )


def optimiser_bytes(config: RunConfig, traced: Traced, zero: Zero, ranks: int, shape: StepShape) -> float:
    """Returns the optimiser's states on one rank; under ZeRO with the float32 weights that it steps."""
    name = str(config.training.get("optim", "adamw_torch"))
    found = [size for start, size in (EIGHT_BIT | STATES).items() if name.startswith(start)]
    if zero.stage:
        return traced.trained * ((found[0] if found else 8.0) + 4.0) / ranks
    # torch keeps the moments in the dtype of the weights; adapters are float32.
    moments = 8.0 if shape.peft is not None else 2.0 * shape.dtype.itemsize
    return traced.trained * (found[0] if found else moments)


def _communication(traced: Traced, zero: Zero, gpus: int, shape: StepShape, trained_bytes: float) -> float:
    """Returns buckets of gradients, and under ZeRO-3 the weights that are gathered at one time."""
    size = shape.dtype.itemsize
    if not zero.stage:
        return trained_bytes if gpus > 1 else 0.0  # DDP copies every gradient into its buckets
    buckets = float(min(zero.bucket, 2 * traced.trained) * size)
    if zero.stage < 3:
        return buckets
    return buckets + min(traced.total, max(MOST_GATHERED, traced.largest)) * traced.weights / traced.total


def _reference_bytes(config: RunConfig, shape: StepShape, traced: Traced) -> float:
    """Returns the weights of a live reference that is not the policy with its adapter off or changed."""
    other = config.training.get("ref_model_name_or_path")
    if shape.live == "none" or (shape.peft is not None and other is None):
        return 0.0
    return float(traced.weights)


def _cache_bytes(config: RunConfig, lengths: Lengths, width: int) -> float:
    """Returns the scores of 1000 rows on disk: a float32 a token, and the hidden states where they are cached too."""
    needs, training = losses.build(config.loss).needs, config.training
    reference = training.get("reference", "auto")
    if not needs.reference or reference in ("live", "adapter_off", "none") or (needs.kl and reference == "auto"):
        return 0.0
    hidden = width * getattr(torch, training["reference_hidden_dtype"]).itemsize if needs.kl else 0
    count = completions_of(config) + needs.mismatched
    return 1000.0 * count * lengths.completion * (4 + hidden)


def _changes(config: RunConfig, gpus: int) -> Iterator[list[str]]:
    """Yields overrides to try, each list adding to the one before: the cheapest for the result and its speed first."""
    training, words = config.training, []
    if not training.get("gradient_checkpointing"):
        words += ["--gradient_checkpointing", "true"]
        yield list(words)
    pairs, accumulation = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    base = list(words)
    while pairs > 1:
        smaller = max(one for one in range(1, pairs) if pairs % one == 0)
        accumulation, pairs = accumulation * (pairs // smaller), smaller
        smaller_batch = f"--per_device_train_batch_size {pairs} --gradient_accumulation_steps {accumulation}"
        words = base + smaller_batch.split()
        yield list(words)
    stage = Zero.read(training.get("deepspeed"), 1).stage
    if not training.get("bf16") and not training.get("fp16") and config.model.dtype == "float32":
        words += ["--bf16", "true"]
    for higher in range(max(stage + 1, 2), 4) if gpus > 1 else ():
        yield [*words, "--deepspeed", f"zero{higher}.json"]
    if gpus > 1:
        yield [*words, "--deepspeed", "zero3_offload.json"]
    if config.peft is None and config.model.adapter is None:
        words += ["--peft.r", "16"]
        yield list(words)
    if not config.model.load_in_4bit:
        words += ["--model.load_in_4bit", "true"]
        yield list(words)
