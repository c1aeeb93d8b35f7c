"""What a config that says "auto" becomes on a machine: the defaults that need no plan, and the one that does."""

from __future__ import annotations

from dataclasses import replace

from alignlab.config import RunConfig, decide, find_config, four_bit_dtype
from alignlab.runtime import Machine

from .memory import GB, estimate
from .micro_batch import Lengths


def resolve(
    config: RunConfig, machine: Machine, ranks: int = 1, lengths: Lengths | None = None
) -> tuple[RunConfig, list[str]]:
    """Returns the config with every "auto" decided for a machine, and what was decided, in words.

    ``gradient_checkpointing: auto`` is on where a run would not fit the device without it, as planned for rows of
    ``max_length``, or where it cannot be planned; off on a CPU, whose memory is not known.

    Args:
        ranks: how many share the run. lengths: of the longest rows, if they are known.
    """
    training, model, said = dict(config.training), config.model, []
    engine = training.get("deepspeed")
    found_engine = str(find_config(engine)) if isinstance(engine, str) else engine
    decisions = decide(training | {"deepspeed": found_engine}, machine)
    training |= {name: value for name, (value, _) in decisions.items()}
    if model.load_in_4bit and model.bnb_4bit_compute_dtype is None:
        model = replace(model, bnb_4bit_compute_dtype=four_bit_dtype(model, machine))  # type: ignore[arg-type]
        said.append(f"model.bnb_4bit_compute_dtype: {model.bnb_4bit_compute_dtype}")
    config = replace(config, model=model, training=training)
    planned = training.get("activation_checkpointing") is None and "gradient_checkpointing" in decisions
    if planned and machine.memory:
        on, why = _checkpointing(config, machine, ranks, lengths)
        decisions["gradient_checkpointing"] = on, why
        config = replace(config, training={**training, "gradient_checkpointing": on})
    found = {True: "true", False: "false", None: "null"}
    said += [f"{name}: {found.get(value, value)} ({why})" for name, (value, why) in decisions.items()]
    return config, said


def _checkpointing(config: RunConfig, machine: Machine, ranks: int, lengths: Lengths | None) -> tuple[bool, str]:
    try:
        peak = estimate(config, ranks, lengths or Lengths.of(config)).peak / GB
    except (ValueError, OSError) as error:
        return True, f"not planned: {str(error).splitlines()[0]}"
    fits = peak <= machine.memory
    return not fits, f"planned without: {peak:.1f} GB, {'fits' if fits else 'does not fit'} {machine.memory:.1f} GB"
