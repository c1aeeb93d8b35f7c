"""What a loop is told: the blocks of its YAML, typed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from alignlab.config import RunConfig, block_of, find_config, load_config, read_yaml, write_yaml
from alignlab.pairing import PairOptions
from alignlab.sampling import SampleOptions

STOPPING = "stopping"  # what the scores of the judge that stops are called


# As they are written: neither "3" nor true is a number here.
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]  # an empty path would be the folder that one stands in
Spec = Text | dict[str, Any]


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompts(_Block):
    """Which prompts a round answers: the next ``per_round`` of the file, or all where that is None."""

    path: Text
    per_round: Whole | None = Field(default=None, ge=1)
    repeat: StrictBool = False  # begin again where the file ends


class Sample(_Block):
    """How answers are drawn: as `alignlab sample` has it."""

    engine: Spec = "transformers"
    samples: Whole = Field(default=8, ge=1)
    max_new_tokens: Whole = Field(default=512, ge=1)
    temperature: Number = Field(default=1.0, gt=0)
    top_p: Number = Field(default=1.0, gt=0, le=1)
    top_k: Whole = Field(default=0, ge=0)
    batch_size: Whole = Field(default=32, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    unfinished: Literal["drop", "keep"] = "drop"


class Ema(_Block):
    """A reference that follows: reference <- ema * reference + (1 - ema) * the model of the round before."""

    ema: Number = Field(gt=0, lt=1)


class Part(_Block):
    """Rows that are trained on beside the rounds' own."""

    path: Text
    weight: Number = Field(default=1.0, gt=0)


class Data(_Block):
    """Which pairs a round trains on: those of the last round, of all, or of the last N; and others mixed in."""

    accumulate: Literal["last", "all"] | Whole = "last"
    mix: tuple[Part, ...] = ()


class Stop(_Block):
    """When the loop ends early: by prompts that are never trained on, and a judge that does not rank."""

    prompts: Text
    judge: Spec
    samples: Whole = Field(default=1, ge=1)
    patience: Whole | None = Field(default=None, ge=1)  # rounds without a better mean score
    max_kl: Number | None = Field(default=None, gt=0)  # nats an answer, to the start


class RoundsConfig(_Block):
    """A whole loop."""

    config: Text
    output_dir: Text
    rounds: Whole = Field(ge=1)
    start: Text
    prompts: Prompts
    sample: Sample = Sample()
    judge: dict[Text, Spec] = {}
    pair: dict[str, Any] = {}
    reference: Literal["initial", "previous"] | Ema = "initial"
    data: Data = Data()
    train: dict[str, Any] = {}
    stop: Stop | None = None
    seed: Whole = 0
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
