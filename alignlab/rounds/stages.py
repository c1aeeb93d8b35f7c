"""The stages of a round: what each reads, what it leaves, and whether that is there, whole and up to date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignlab.answers import Made, file_digest
from alignlab.cache import default_root, file_memory
from alignlab.data import sources_digest
from alignlab.models import base_path

from .config import Ema, RoundsConfig

STAGE = "stage.json"
ANSWERS, PAIRS = "answers.jsonl", "pairs.jsonl"


@dataclass(frozen=True)
class Stage:
    """One stage of one round, in a folder of its own whose ``stage.json`` is written last.

    A stage is done if that says it was made of this config and of the stages before it as they are now, and its files
    are what was written. Round 0 only watches the start.
    """

    loop: RoundsConfig
    round: int
    name: str

    def __str__(self) -> str:
        return f"{self.round}/{self.name}"

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self.loop.folder / f"round-{self.round:02}" / self.name

    @property
    def made(self) -> Made:
        """Its manifest."""
        return Made(self.folder / STAGE, {"stage": self.name, "round": self.round, **self._inputs()})

    def is_done(self) -> bool:
        """True where there is nothing to do.

        Raises:
            ValueError: its folder was made of something else, which nothing overwrites.
        """
        made = self.made
        if others := made.others():
            raise ValueError(
                f"{self.folder} was made of something else ({'; '.join(others[:3])}); delete it and the rounds after "
                "it to make them anew, or choose another output_dir"
            )
        return made.is_done()

    def _inputs(self) -> dict[str, Any]:
        """Returns what its output depends on: its part of the config, and digests of what it reads."""
        loop, told = self.loop, dict[str, Any]()
        before = [one for one in stages(loop, self.round) if one.name in READS[self.name]]
        told |= {f"{one}": _digest(one.folder / STAGE) for one in before}
        if self.name in ("sample", "train", "watch", "reference"):
            told["model"] = model_digest(loop, self.round - 1)
        if self.name == "sample":
            told |= {"sample": loop.sample.model_dump(exclude={"batch_size", "unfinished"}), "seed": loop.seed}
            told |= {"prompts": loop.prompts.model_dump(), "prompts_file": content(loop.prompts.path)}
        elif self.name == "judge":
            told["judges"] = {name: [spec, judge_content(spec)] for name, spec in loop.judge.items()}
        elif self.name == "pair":
            told["pair"] = asdict(loop.pair_options())  # whole: the first judge decides, and told options go first
        elif self.name == "reference":
            told["ema"] = loop.reference.ema if isinstance(loop.reference, Ema) else None
        elif self.name == "train":
            told |= self._training()
        elif self.name == "watch" and loop.stop is not None:
            told |= {"stop": loop.stop.model_dump(exclude={"patience", "max_kl"}), "seed": loop.seed}
            told |= {"stop_prompts": content(loop.stop.prompts), "stop_judge": judge_content(loop.stop.judge)}
            told |= {"judges": {name: [spec, judge_content(spec)] for name, spec in loop.judge.items()}}
            told |= {
                "sample": loop.sample.model_dump(exclude={"batch_size", "unfinished"}),
                "start": content(loop.start),
            }
        return told

    def _training(self) -> dict[str, Any]:
        loop = self.loop
        values = loop.run_config(
            {"model.name_or_path": "model", "data.train": "pairs.jsonl", "output_dir": "out"}
        ).to_dict()
        reference = loop.reference.model_dump() if isinstance(loop.reference, Ema) else loop.reference
        earlier = {f"{one}": _digest(one.folder / STAGE) for one in self.pair_stages()}
        mix = [[part.model_dump(), content(part.path)] for part in loop.data.mix]
        return {"config": values, "reference": reference, "data": loop.data.model_dump(), "pairs": earlier, "mix": mix}

    def pair_stages(self) -> list[Stage]:
        """Returns the stages whose pairs this round's training reads."""
        accumulate = self.loop.data.accumulate
        count = (
            {"last": 1, "all": self.round}.get(accumulate, accumulate) if isinstance(accumulate, str) else accumulate
        )
        first = max(1, self.round - int(count) + 1)
        return [Stage(self.loop, number, "pair") for number in range(first, self.round + 1)]


READS = {  # the stages of its own round that a stage reads
    "sample": (),
    "judge": ("sample",),
    "pair": ("sample", "judge"),
    "reference": (),
    "train": ("pair", "reference"),
    "watch": ("train",),
}


def stages(loop: RoundsConfig, round_: int) -> list[Stage]:
    """Returns the stages of a round, in order."""
    if round_ == 0:
        return [Stage(loop, 0, "watch")] if loop.stop is not None else []
    names = ["sample", *(["judge"] if loop.judge else []), "pair"]
    names += ["reference"] if isinstance(loop.reference, Ema) and round_ > 1 else []
    names += ["train", *(["watch"] if loop.stop is not None else [])]
    return [Stage(loop, round_, name) for name in names]


def all_stages(loop: RoundsConfig) -> Iterator[Stage]:
    """Yields every stage of the loop, in order."""
    for round_ in range(loop.rounds + 1):
        yield from stages(loop, round_)


def model_path(loop: RoundsConfig, round_: int) -> Path | str:
    """Returns the model that a round ends with; that of round 0 (and before) is the start."""
    return loop.start if round_ < 1 else Stage(loop, round_, "train").folder


def model_digest(loop: RoundsConfig, round_: int) -> str:
    """Returns what tells the model that a round ends with from any other."""
    return content(loop.start) if round_ < 1 else _digest(Stage(loop, round_, "train").folder / STAGE)


def content(path: str) -> str:
    """Returns a hash of a file, or of all files of a folder; of what is neither (an id of the hub) its name.

    An adapter's has its base's behind it, which may lie elsewhere.
    """
    if not Path(path).exists():
        return path
    own, base = sources_digest(path, file_memory(default_root())), base_path(path)
    return own if base == path else f"{own} {content(base)}"


def judge_content(spec: str | dict[str, Any]) -> str:
    """Returns a hash of what a judge is made of: the file of a function, the folder of a model."""
    name = spec if isinstance(spec, str) else str(spec.get("name", ""))
    return content(name.rpartition(":")[0] if ".py:" in name else name)


def _digest(path: Path) -> str:
    return file_digest(path) if path.is_file() else "not there yet"
