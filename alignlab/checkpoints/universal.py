"""Resuming a ZeRO checkpoint on another number of ranks, through DeepSpeed's universal form of it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from alignlab.runtime import from_main, is_main, rank_and_ranks

logger = logging.getLogger(__name__)

UNIVERSAL = ".universal-"  # a hidden folder in the run folder, there while it is loaded


def ranks_of(checkpoint: Path) -> int | None:
    """Returns the number of ranks that wrote a ZeRO checkpoint; None where DeepSpeed wrote none of it."""
    return len({one.name for one in checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")}) or None


def is_of_other_ranks(checkpoint: str | None) -> bool:
    """True for a ZeRO checkpoint that another number of ranks wrote than are running; the same on every rank."""
    if checkpoint is None:
        return False
    found = from_main(lambda: ranks_of(Path(checkpoint)))
    return found is not None and found != rank_and_ranks()[1]


def load_universal(engine: Any, checkpoint: Path, run_folder: Path, *, strict: bool = True) -> None:
    """Loads weights and optimiser of a ZeRO checkpoint into an engine on any number of ranks.

    DeepSpeed loads a ZeRO checkpoint only on as many ranks as wrote it. Rank 0 converts it while the others wait:
    every weight and every moment of the optimiser becomes one tensor, which any number of ranks shares out again.

    Args:
        engine: the ``DeepSpeedEngine``, as it is made. checkpoint: ``checkpoint-N``, checked.
        run_folder: where the converted one stands until it is loaded; all ranks share it.
        strict: False where only an adapter was saved.

    Raises:
        ValueError: DeepSpeed's conversion failed; its last lines are in the message.
    """
    if is_main():
        found, ranks = ranks_of(checkpoint), rank_and_ranks()[1]
        logger.warning("%s was written by %s ranks, this run has %s: it is converted first", checkpoint, found, ranks)
    converted = run_folder / (UNIVERSAL + checkpoint.name)
    tag = from_main(lambda: _convert(checkpoint, converted))
    settings = engine._config
    before, settings.load_universal_checkpoint = settings.load_universal_checkpoint, True
    try:
        with own_groups(engine.optimizer):
            path, _ = engine.load_checkpoint(str(converted), tag=tag, load_module_strict=strict)
    finally:
        settings.load_universal_checkpoint = before
    if path is None:
        raise ValueError(f"resume_from_checkpoint: DeepSpeed found nothing to load in {checkpoint}, converted")
    from_main(lambda: shutil.rmtree(converted))


def _convert(checkpoint: Path, converted: Path) -> str:
    """Runs DeepSpeed's converter, which unpickles the checkpoint: the caller has checked it. Returns the tag."""
    shutil.rmtree(converted, ignore_errors=True)
    converted.mkdir(parents=True)
    tag = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    # A checkpoint of the Trainer lacks what only pipeline engines note down; the last flag has it filled in.
    words = ["--input_folder", str(checkpoint / tag), "--output_folder", str(converted / tag)]
    words += ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *words]
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    if done.returncode != 0 or not (converted / tag / "zero").is_dir():
        shutil.rmtree(converted, ignore_errors=True)
        raise ValueError(f"resume_from_checkpoint: {checkpoint} could not be converted: {done.stderr[-2000:]}")
    return tag


@contextmanager
def own_groups(optimizer: Any) -> Iterator[None]:
    """Mends what loading a universal checkpoint at stage 3 does to the parameter groups of a ZeRO optimiser.

    DeepSpeed 0.19.8 gives all weights one ``step`` tensor, which then counts once for each of them, and all groups the
    settings of the first, so that weight decay would reach biases and norms. Each gets its own again.
    """
    shared = ("params", "lr")  # the learning rate is the scheduler's, and one for all groups
    before = [{name: value for name, value in one.items() if name not in shared} for one in optimizer.param_groups]
    yield
    for group, own in zip(optimizer.param_groups, before, strict=True):
        group.update(own)
    for state in optimizer.optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()
