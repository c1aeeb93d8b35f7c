"""Whether what a loop names is there: its models, prompts, judges and programs, before anything is computed."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from typing import Any

from alignlab.config import ModelOptions, find_config
from alignlab.data import AskedPrompts, check_there, open_sources, read_prompts
from alignlab.judges import check_judge
from alignlab.models import load_tokenizer

from .config import RoundsConfig


def check_all_there(loop: RoundsConfig) -> None:
    """Refuses a loop that would fail on a file after hours, trains on its held-out prompts, or runs out of prompts.

    Functions that judge are imported, reward models found and not loaded; names of the hub are asked for there.

    Raises:
        ValueError: names the dotted key, what was found, and what is allowed.
    """
    try:
        program = (shlex.split(loop.launcher) or [""])[0]
    except ValueError as error:
        raise ValueError(f"launcher: {error}, found {loop.launcher!r}") from error
    if program and shutil.which(program) is None:
        raise ValueError(
            f"launcher: no program {program!r} on PATH; give words such as 'torchrun --nproc-per-node 8 -m'"
        )
    config = loop.run_config({"model.name_or_path": loop.start, "data.train": "pairs.jsonl", "output_dir": "unused"})
    for key in ("deepspeed", "reference_deepspeed"):
        if isinstance(name := config.training.get(key), str):
            try:
                find_config(name)
            except FileNotFoundError as error:
                raise ValueError(f"train.{key}: {error}") from error
    for key, path in _sources(loop, config.data.eval):
        try:
            check_there(path)
        except ValueError as error:
            raise ValueError(f"{key}: {error}; allowed are a file, a folder or a data set of the hub") from error
    judges = {f"judge.{name}": spec for name, spec in loop.judge.items()}
    judges |= {} if loop.stop is None else {"stop.judge": loop.stop.judge}
    for key, spec in judges.items():
        try:
            check_judge(spec)
        except ValueError as error:  # it opens with "judge", or with an option of it
            told = str(error).replace("did you mean judge.", f"did you mean {key}.")
            raise ValueError(f"{key}{told.removeprefix('judge')}") from error
    check_prompts(loop)


def _sources(loop: RoundsConfig, held_out: Any) -> Iterator[tuple[str, str]]:
    """Yields the dotted key and the path of everything that rows are read from."""
    yield "prompts.path", loop.prompts.path
    yield from ((f"data.mix.{number}.path", part.path) for number, part in enumerate(loop.data.mix))
    if loop.stop is not None:
        yield "stop.prompts", loop.stop.prompts
    sets = held_out.values() if isinstance(held_out, dict) else [held_out]
    for source in sets if held_out is not None else ():
        yield from (("train.data.eval", one.path) for one in open_sources(source) if one.path)


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
    if loop.pair_options().rule == "human_own" and not any(one.human_ids for one in asked.prompts):
        raise ValueError(
            f"prompts.path: pair.rule human_own takes people's answers, and none of {len(asked.prompts)} prompts in "
            f"{loop.prompts.path} has one; allowed are rows with chosen or completion"
        )
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
