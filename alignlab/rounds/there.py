"""Whether what a loop names is there: its models, prompts, judges and programs, before anything is computed."""

from __future__ import annotations

import shlex
import shutil

from alignlab.config import ModelOptions
from alignlab.data import AskedPrompts, check_there, read_prompts
from alignlab.judges import check_judge
from alignlab.models import load_tokenizer

from .config import RoundsConfig


def check_all_there(loop: RoundsConfig) -> None:
    """Refuses a loop that would fail on a file after hours, trains on its held-out prompts, or runs out of prompts.

    Functions that judge are imported, reward models found and not loaded; names of the hub are asked for there.

    Raises:
        ValueError: names the dotted key, what was found, and what is allowed.
    """
    program = (shlex.split(loop.launcher) or [""])[0]
    if program and shutil.which(program) is None:
        raise ValueError(
            f"launcher: no program {program!r} on PATH; give words such as 'torchrun --nproc-per-node 8 -m'"
        )
    sources = {"prompts.path": loop.prompts.path}
    sources |= {f"data.mix.{number}.path": part.path for number, part in enumerate(loop.data.mix)}
    judges = {f"judge.{name}": spec for name, spec in loop.judge.items()}
    if loop.stop is not None:
        sources["stop.prompts"], judges["stop.judge"] = loop.stop.prompts, loop.stop.judge
    for key, path in sources.items():
        try:
            check_there(path)
        except ValueError as error:
            raise ValueError(f"{key}: {error}; allowed are a file, a folder or a data set of the hub") from error
    for key, spec in judges.items():
        try:
            check_judge(spec)
        except ValueError as error:  # it opens with "judge", or with an option of it
            told = str(error).replace("did you mean judge.", f"did you mean {key}.")
            raise ValueError(f"{key}{told.removeprefix('judge')}") from error
    check_prompts(loop)


def check_prompts(loop: RoundsConfig) -> None:
    """Refuses a loop that trains on its held-out prompts, in whatever file, or whose prompts run out."""
    try:
        tokenizer = load_tokenizer(ModelOptions(loop.start))
    except ValueError as error:
        raise ValueError(f"start: {error}") from error

    def read(key: str, path: str) -> AskedPrompts:
        try:
            return read_prompts(path, tokenizer)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    asked = read("prompts.path", loop.prompts.path)
    known = {one.id for one in asked.prompts}
    wanted = loop.rounds * (loop.prompts.per_round or 0)
    if loop.rounds > 1 and wanted > len(known) and not loop.prompts.repeat:
        raise ValueError(
            f"prompts.per_round: {loop.rounds} rounds of {loop.prompts.per_round} are {wanted} prompts, and "
            f"{loop.prompts.path} has {len(known)}; take fewer, or begin again (prompts.repeat: true)"
        )
    if loop.stop is None:
        return
    held = {one.id for one in read("stop.prompts", loop.stop.prompts).prompts}
    trained = {loop.prompts.path: known}
    for number, part in enumerate(loop.data.mix):
        trained[part.path] = {one.id for one in read(f"data.mix.{number}.path", part.path).prompts}
    for path, ids in trained.items():
        if both := held & ids:
            raise ValueError(
                f"stop.prompts: {len(both)} of {len(held)} prompts stand in {path} too, and would be "
                "trained on; take them out of either"
            )
