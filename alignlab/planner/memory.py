"""Memory before it is spent: what a run takes on each GPU, on the host and on disk."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignlab import losses, models
from alignlab.config import RunConfig

from .micro_batch import Lengths, completions_of, reference_mode, step_shape
from .trace import ACTIVATIONS, GRADIENTS, HEAD, WEIGHTS, StepShape, Traced, trace_step
from .zero import Zero

GB = 1e9
# What a CUDA context, its libraries and NCCL keep, and what a caching allocator cannot use for being cut up. Assumed,
# not measured: there is no GPU where the rest of this file was checked.
FRAMEWORK = 1.5 * GB
# Bytes of optimiser state for each trained parameter, by the beginning of its name; two float32 moments otherwise.
STATES = {"sgd": 0.0, "adafactor": 0.1, "lion": 4.0, "rmsprop": 4.0, "adagrad": 4.0, "adamw_bnb_8bit": 2.1}
EIGHT_BIT = {"lion_8bit": 1.1, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1, "paged_lion_8bit": 1.1}
MOST_GATHERED = 10**9  # stage3_max_live_parameters, which the shipped configs leave as DeepSpeed has it


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


def estimate(
    config: RunConfig, gpus: int, lengths: Lengths, framework: float = FRAMEWORK, device: str = "cuda"
) -> Estimate:
    """Returns what a run takes on each rank, from one step on tensors without storage and the engine's arithmetic."""
    architecture = models.architecture(config.model)
    text = architecture.get_text_config()
    zero = Zero.of(config.training, int(text.hidden_size))
    shape = step_shape(config, architecture, lengths, zero, device)
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


def optimiser_bytes(config: RunConfig, traced: Traced, zero: Zero, ranks: int, shape: StepShape) -> float:
    """Returns the optimiser's states on one rank; with the float32 weights that ZeRO, or half-precision FSDP, steps."""
    name = str(config.training.get("optim", "adamw_torch"))
    found = [size for start, size in (EIGHT_BIT | STATES).items() if name.startswith(start)]
    if zero.stage:
        masters = 0.0 if zero.fsdp and shape.dtype.itemsize >= 4 else 4.0  # FSDP steps the weights that it shards
        return traced.trained * ((found[0] if found else 8.0) + masters) / ranks
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
    if reference_mode(config) != "cached":
        return 0.0
    needs = losses.build(config.loss).needs
    hidden = width * getattr(torch, config.training["reference_hidden_dtype"]).itemsize if needs.kl else 0
    count = completions_of(config) + needs.mismatched
    return 1000.0 * count * lengths.completion * (4 + hidden)
