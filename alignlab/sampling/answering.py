"""`alignlab sample`: answers to a file of prompts, drawn by any engine, shard by shard into one file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.answers import AnswerRow, Made, Shards, array_part, made_beside
from alignlab.config import ModelOptions
from alignlab.data import AskedPrompt, AskedPrompts, DataOptions, read_prompts
from alignlab.runtime import bar, from_main, is_main, rank_and_ranks, shown_as, wait_for_all

from .build import Spec, build_engine, check_engine
from .engine import Engine
from .options import SampleOptions
from .policy import Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What is to be sampled.

    Attributes:
        model: how the model is loaded. prompts: as ``data.read_prompts`` takes them.
        output: the file of answers. engine: how they are drawn.
        most: so many prompts from the ``first`` on, counted from 0; None for all. repeat: begin again where they end.
        manifest: where it is said what the file was made of; by default beside it.
    """

    model: ModelOptions
    prompts: Any
    output: Path
    options: SampleOptions = field(default_factory=SampleOptions)
    engine: Spec = "transformers"
    first: int = 0
    most: int | None = None
    repeat: bool = False
    manifest: Path | None = None
    data: DataOptions = field(default_factory=DataOptions)


def sample(asked: Sampled) -> bool:
    """Draws what is missing of the answers; returns True once the file is whole.

    Under a launcher every rank draws its share, and so does every job of a Slurm array. Where others are still at work
    the last of them puts the file together, and False is returned here.

    Raises:
        ValueError: prompts that cannot be answered, or an output that was made of something else.
    """
    check_engine(asked.engine)
    policy = Policy(asked.model)
    engine = build_engine(asked.engine, policy, asked.options, asked.model.name_or_path)
    read = read_prompts(asked.prompts, policy.tokenizer, asked.data)
    prompts, account = chosen_prompts(read, asked, policy.room)
    of = {"step": "sample", "engine": engine.name, "model": engine.model, **engine.of, **asked.options.of()}
    of["prompts"] = _digest(prompts)
    made = made_beside(asked.output, of) if asked.manifest is None else Made(asked.manifest, of)
    return draw_all(engine, prompts, Shards(made, asked.output, _size(asked.options), len(prompts)), account)


def draw_all(engine: Engine, prompts: Sequence[AskedPrompt], shards: Shards, account: dict[str, Any]) -> bool:
    """Draws this process's part of what is missing, a shard at a time, and puts the file together if it is the last."""
    from_main(shards.open)
    if from_main(shards.is_whole):
        logger.info("%s is there, whole", shards.output)
        return True
    part, parts = _part()
    missing = shards.missing(part, parts)
    left = sum(map(len, missing))
    if left < shards.rows:
        logger.info("%d of %d prompts are to be answered here", left, shards.rows)
    if missing:
        engine.check(prompts)
    with bar("sampling", left, "prompts", shown_as() if is_main() else "none") as shown:
        for numbers in missing:
            some = [prompts[number] for number in numbers]
            shards.write(numbers, list(_rows(engine, some, shards.made.of)))
            shown.update(len(numbers))
    wait_for_all()
    whole = from_main(lambda: shards.assemble(account))
    if is_main() and not whole:
        logger.info("%s: other processes are still at it; the last one puts the file together", shards.folder)
    return whole


def _rows(engine: Engine, prompts: Sequence[AskedPrompt], of: dict[str, Any]) -> Iterator[AnswerRow]:
    for prompt, answers in zip(prompts, engine.draw(prompts), strict=True):
        yield AnswerRow(
            prompt.id,
            prompt.prompt,
            prompt.ids,
            engine.model,
            engine.name,
            of["round"],
            answers,
            prompt.human,
            prompt.human_ids,
            prompt.group,
        )


def chosen_prompts(read: AskedPrompts, asked: Sampled, room: int | None) -> tuple[list[AskedPrompt], dict[str, Any]]:
    """Returns the prompts that are answered, and what became of the others; says so.

    Args:
        room: tokens of the longest text that the model takes.

    Raises:
        ValueError: none is left.
    """
    prompts = _portion(read.prompts, asked)
    longest = None if room is None else room - asked.options.max_new_tokens
    fitting = [one for one in prompts if longest is None or len(one.ids) <= longest]
    account = {"prompts": len(fitting), "repeated": read.repeated, "too_long": len(prompts) - len(fitting)}
    if account["too_long"]:
        logger.warning(
            "%d prompts are left out: with max_new_tokens=%d they are longer than the model's %d tokens",
            account["too_long"], asked.options.max_new_tokens, room,
        )  # fmt: skip
    if read.repeated:
        logger.warning("%d rows repeat an earlier prompt, which is answered once", read.repeated)
    for note in read.notes:
        logger.warning("%s", note)
    if not fitting:
        raise ValueError(f"--prompts: none is left of {len(read.prompts)} ({account['too_long']} are too long)")
    return fitting, account


def _portion(prompts: list[AskedPrompt], asked: Sampled) -> list[AskedPrompt]:
    """Returns the prompts that are asked for.

    Raises:
        ValueError: there are not so many.
    """
    if asked.most is None:
        return prompts[asked.first :]
    if asked.most < 1:
        raise ValueError(f"--most: expected at least 1, found {asked.most}")
    if asked.repeat:  # each once a call, also where more are asked for than there are
        count = min(asked.most, len(prompts))
        return [prompts[(asked.first + n) % len(prompts)] for n in range(count)]
    found = prompts[asked.first : asked.first + asked.most]
    if asked.first and len(found) < asked.most:
        raise ValueError(
            f"prompts: {asked.first} to {asked.first + asked.most} are wanted, and there are {len(prompts)}; take "
            "fewer a round (prompts.per_round), or begin again where they end (prompts.repeat: true)"
        )
    return found


def _size(options: SampleOptions) -> int:
    """Returns the prompts a shard: those whose answers fill a batch."""
    return max(1, options.batch_size // options.samples)


def _part() -> tuple[int, int]:
    """Returns which part of the work is this process's: ranks within the jobs of an array."""
    (rank, ranks), (job, jobs) = rank_and_ranks(), array_part()
    return job * ranks + rank, jobs * ranks


def _digest(prompts: Sequence[AskedPrompt]) -> str:
    digest = hashlib.sha256()
    for one in prompts:
        digest.update(json.dumps([one.id, one.ids, one.human_ids, one.group]).encode())
    return digest.hexdigest()
