"""What each stage does: other rooms' work, with the names of files."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from alignlab import losses, models
from alignlab.answers import read_answers
from alignlab.config import ModelOptions, RunConfig, holds_adapter
from alignlab.judges import judge_answers
from alignlab.pairing import pair
from alignlab.run import train
from alignlab.runtime import from_main, is_main, wait_for_all
from alignlab.sampling import Sampled, sample

from .config import Ema
from .ema import average
from .stages import ANSWERS, PAIRS, Stage, model_path
from .watch import scores_of, shape_of, watch

_MODEL = [*("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json")]
_MODEL += [
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab*",
    "merges.txt",
]


def run_stage(stage: Stage) -> bool:
    """Does what is left of a stage; returns True once it is done, False where other jobs are still at their part.

    Under a launcher every rank calls it. Pairs, averages and the watch are one process's work.
    """
    PartialState(cpu=not torch.accelerator.is_available())  # the ranks of a launcher meet here, if there are any
    if from_main(stage.is_done):
        return True
    if is_main():
        stage.folder.mkdir(parents=True, exist_ok=True)
    wait_for_all()
    done = _WORK[stage.name](stage)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    wait_for_all()
    return done


def _sample(stage: Stage) -> bool:
    loop, output = stage.loop, stage.folder / ANSWERS
    per_round = loop.prompts.per_round
    asked = Sampled(
        model=ModelOptions(str(model_path(loop, stage.round - 1)), dtype=loop.sample.dtype),
        prompts=loop.prompts.path,
        output=output,
        options=loop.sample_options(stage.round),
        engine=loop.sample.engine,
        first=(stage.round - 1) * (per_round or 0),
        most=per_round,
        repeat=loop.prompts.repeat,
    )
    if not sample(asked):
        return False
    return _finish(stage, [output])


def _judge(stage: Stage) -> bool:
    answers = Stage(stage.loop, stage.round, "sample").folder / ANSWERS
    output = stage.folder / ANSWERS
    if not judge_answers(answers, stage.loop.judge, output=output):
        return False
    return _finish(stage, [output])


def _pair(stage: Stage) -> bool:
    if is_main():
        source = "judge" if stage.loop.judge else "sample"
        answers = Stage(stage.loop, stage.round, source).folder / ANSWERS
        output = stage.folder / PAIRS
        account = pair(answers, output, stage.loop.pair_options())
        stage.made.finish([output], account.values())
    wait_for_all()
    return True


def _reference(stage: Stage) -> bool:
    """The reference of this round: an average of that of the round before, and of its model."""
    if is_main():
        ema = stage.loop.reference
        assert isinstance(ema, Ema)
        older = stage.loop.start if stage.round == 2 else str(Stage(stage.loop, stage.round - 1, "reference").folder)
        average(older, str(model_path(stage.loop, stage.round - 1)), ema.ema, stage.folder)
        stage.made.finish(_model_files(stage.folder))
    wait_for_all()
    return True


def _train(stage: Stage) -> bool:
    train(training_config(stage))
    if is_main():
        stage.made.finish(_model_files(stage.folder))
    wait_for_all()
    return True


def training_config(stage: Stage) -> RunConfig:
    """Returns the config that a round trains by: the model of the round before, on pairs, against the reference."""
    loop = stage.loop
    before = str(model_path(loop, stage.round - 1))
    parts: list[Any] = [{"path": str(one.folder / PAIRS)} for one in stage.pair_stages()]
    parts += [part.model_dump() for part in loop.data.mix]
    changes: dict[str, Any] = {"data.train": parts, "output_dir": str(stage.folder), "resume_from_checkpoint": "auto"}
    if stage.round > 1 and holds_adapter(before):  # the base stays, and the adapter is trained further
        changes |= {"model.name_or_path": models.base_path(before), "model.adapter": before, "peft": None}
    else:
        changes["model.name_or_path"] = before
    plain = loop.run_config({"model.name_or_path": before, "data.train": parts, "output_dir": str(stage.folder)})
    if losses.build(plain.loss).needs.ref_logps and stage.round > 1 and loop.reference != "previous":
        followed = Stage(loop, stage.round, "reference").folder
        changes["ref_model_name_or_path"] = loop.start if loop.reference == "initial" else str(followed)
    return loop.run_config(changes)


def _watch(stage: Stage) -> bool:
    loop = stage.loop
    others = [str(loop.start), str(model_path(loop, stage.round - 1))]
    account = watch(stage, others, str(model_path(loop, stage.round)))
    if is_main():
        stage.made.finish([stage.folder / ANSWERS], account)
    wait_for_all()
    return True


def _finish(stage: Stage, outputs: list[Path]) -> bool:
    if is_main():
        rows = list(read_answers(outputs[0]))
        stage.made.finish(outputs, {"prompts": len(rows), "scores": scores_of(rows), **shape_of(rows)})
    wait_for_all()
    return True


def _model_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in _MODEL for path in folder.glob(pattern)})


_WORK = {
    "sample": _sample,
    "judge": _judge,
    "pair": _pair,
    "reference": _reference,
    "train": _train,
    "watch": _watch,
}
