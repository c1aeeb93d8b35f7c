"""What a loop is told: its YAML, typed and checked before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignlab import losses
from alignlab.config import (
    RunConfig,
    Values,
    block_of,
    find_config,
    load_config,
    parse_yaml,
    read_yaml,
    unknown_key,
    write_yaml,
)
from alignlab.pairing import PairOptions
from alignlab.sampling import SampleOptions, check_engine

STOPPING = "stopping"  # what the scores of the judge that stops are called


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompts(_Block):
    """Which prompts a round answers: the next ``per_round`` of the file, or all where that is None."""

    path: str
    per_round: int | None = Field(default=None, ge=1)
    repeat: bool = False  # begin again where the file ends


class Sample(_Block):
    """How answers are drawn: as `alignlab sample` has it."""

    engine: str | dict[str, Any] = "transformers"
    samples: int = Field(default=8, ge=1)
    max_new_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    batch_size: int = Field(default=32, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    unfinished: Literal["drop", "keep"] = "drop"


class Ema(_Block):
    """A reference that follows: reference <- ema * reference + (1 - ema) * the model of the round before."""

    ema: float = Field(gt=0, lt=1)


class Part(_Block):
    """Rows that are trained on beside the rounds' own."""

    path: str
    weight: float = Field(default=1.0, gt=0)


class Data(_Block):
    """Which pairs a round trains on: those of the last round, of all, or of the last N; and others mixed in."""

    accumulate: Literal["last", "all"] | int = "last"
    mix: tuple[Part, ...] = ()


class Stop(_Block):
    """When the loop ends early: by prompts that are never trained on, and a judge that does not rank."""

    prompts: str
    judge: str | dict[str, Any]
    samples: int = Field(default=1, ge=1)
    patience: int | None = Field(default=None, ge=1)  # rounds without a better mean score
    max_kl: float | None = Field(default=None, gt=0)  # nats an answer, to the start


class RoundsConfig(_Block):
    """A whole loop."""

    config: str
    output_dir: str
    rounds: int = Field(ge=1)
    start: str
    prompts: Prompts
    sample: Sample = Sample()
    judge: dict[str, str | dict[str, Any]] = {}
    pair: dict[str, Any] = {}
    reference: Literal["initial", "previous"] | Ema = "initial"
    data: Data = Data()
    train: dict[str, Any] = {}
    stop: Stop | None = None
    seed: int = 0
    launcher: str = ""

    @property
    def folder(self) -> Path:
        """Where all of it is written."""
        return Path(self.output_dir)

    def pair_options(self) -> PairOptions:
        """Returns how pairs are made: the first judge decides."""
        ranks = {"score": next(iter(self.judge))} if self.judge else {}
        return PairOptions(**{"seed": self.seed, "unfinished": self.sample.unfinished, **ranks, **self.pair})

    def sample_options(self, round_: int) -> SampleOptions:
        """Returns how the answers of a round are drawn."""
        told = self.sample.model_dump(exclude={"engine", "dtype", "unfinished"})
        return SampleOptions(**told, seed=self.seed, round=round_)

    def run_config(self, changes: Mapping[str, Any]) -> RunConfig:
        """Returns the config of a training: the one that is named, ``train`` over it, ``changes`` over both."""
        values = read_yaml(find_config(self.config))
        for key, value in {**self.train, **changes}.items():
            at, last = block_of(values, key)
            at[last] = value
        return load_config(values)

    def to_yaml(self) -> str:
        """Returns all of it as YAML; loading that gives the same."""
        return write_yaml(self.model_dump(mode="json"))


def load_rounds(config: str | Path | Mapping[str, Any], overrides: Sequence[tuple[str, str]] = ()) -> RoundsConfig:
    """Reads and checks a loop without loading a model or data.

    Args:
        config: a YAML file, the name of a shipped one, or the values themselves.
        overrides: (dotted key, text) from the command line.

    Raises:
        ValueError: an unknown key or a wrong value (naming the dotted key), or blocks that contradict.
        FileNotFoundError: no such config.
    """
    values: Values = dict(config) if isinstance(config, Mapping) else read_yaml(find_config(config))
    for key, text in overrides:
        at, last = block_of(values, key)
        at[last] = parse_yaml(text, f"--{key}")
    try:
        found = RoundsConfig.model_validate(values)
    except ValidationError as error:
        raise _readable(error) from error
    _check(found)
    return found


def _readable(error: ValidationError) -> ValueError:
    """Returns the first thing that is wrong, under its dotted key."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if not str(part).startswith(("literal", "function", "Ema"))]
    dotted = ".".join(place)
    if first["type"] == "extra_forbidden":
        return unknown_key(dotted, _keys_beside(place))
    return ValueError(f"{dotted}: {first['msg'].lower()}, found {first['input']!r}")


def _keys_beside(place: Sequence[str]) -> list[str]:
    model: Any = RoundsConfig
    for part in place[:-1]:
        blocks = {"prompts": Prompts, "sample": Sample, "data": Data, "stop": Stop, "reference": Ema, "mix": Part}
        model = blocks.get(part, model)
    return list(model.model_fields)


def _check(found: RoundsConfig) -> None:
    """Refuses what could only fail in the midst of a night, or would be silently wrong."""
    try:
        check_engine(found.sample.engine)
    except ValueError as error:
        raise ValueError(f"sample.{error}") from error
    known = [one.name for one in fields(PairOptions)]
    for key in found.pair:
        if key not in known:
            raise unknown_key(f"pair.{key}", known)
    try:
        options = found.pair_options()
    except ValueError as error:
        raise ValueError(f"pair.{error}") from error
    if options.rule not in ("human_own", "minimax") and not found.judge:
        raise ValueError(f"judge: pair.rule {options.rule} needs scores: name a judge, such as {{rm: path/to/rm}}")
    if options.score is not None and options.score not in found.judge:
        raise ValueError(f"pair.score: expected one of {', '.join(found.judge)}, found {options.score!r}")
    accumulate = found.data.accumulate
    if isinstance(accumulate, int) and accumulate < 1:
        raise ValueError(f"data.accumulate: expected last, all or at least 1, found {accumulate}")
    for key in ("model.name_or_path", "data.train", "output_dir", "ref_model_name_or_path", "sync_ref_model"):
        if key in found.train:
            raise ValueError(
                f"train.{key}: the loop sets it itself; write it in {found.config} or as a key of the loop"
            )
    if found.stop is not None:
        _check_stop(found, found.stop)
    config = found.run_config({"model.name_or_path": found.start, "data.train": "pairs.jsonl", "output_dir": "unused"})
    needs = losses.build(config.loss).needs
    if needs.values:
        raise ValueError("loss: it trains a reward model, and the loop draws answers from what it trains")
    if config.training.get("ref_model_name_or_path") is not None:
        raise ValueError(
            f"ref_model_name_or_path: {found.config} sets it, and the loop sets it itself, by `reference`; take it out"
        )
    if isinstance(found.reference, Ema) and (config.peft is not None or not needs.ref_logps):
        why = "its weights would be averaged, and adapters' are not" if needs.ref_logps else "the loss reads none"
        raise ValueError(f"reference: {{ema}} cannot work here: {why}; allowed: initial, previous")


def _check_stop(found: RoundsConfig, stop: Stop) -> None:
    if stop.patience is None and stop.max_kl is None:
        raise ValueError("stop: by what? give stop.patience or stop.max_kl")
    if STOPPING in found.judge:
        raise ValueError(f"judge.{STOPPING}: that is what the judge that stops is called; choose another name")
    ranking = found.judge.get(found.pair_options().score or "")
    if ranking is not None and _same_judge(stop.judge, ranking):
        raise ValueError("stop.judge: it is the judge that ranks, whose mistakes it would share; give another one")
    if stop.prompts == found.prompts.path:
        raise ValueError("stop.prompts: they are trained on; give prompts that are not")


def _same_judge(one: str | dict[str, Any], other: str | dict[str, Any]) -> bool:
    """True where two specs name one judge, however its path is written and whatever options it is given.

    Of an address the options tell: they name the model.
    """
    names = [spec if isinstance(spec, str) else str(spec.get("name", "")) for spec in (one, other)]
    if any(name.startswith(("http://", "https://")) for name in names):
        return one == other
    return os.path.realpath(names[0]) == os.path.realpath(names[1])
