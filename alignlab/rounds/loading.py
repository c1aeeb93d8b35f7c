"""From the YAML of a loop and the command line to its blocks: mistakes are named before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from alignlab import losses
from alignlab.config import ModelOptions, RunConfig, Values, block_of, find_config, parse_yaml, read_yaml, unknown_key
from alignlab.pairing import RULES, PairOptions, gives
from alignlab.sampling import check_engine

from .config import STOPPING, Data, Ema, Part, Prompts, RoundsConfig, Sample, Stop

_BLOCKS: dict[str, type[BaseModel]] = {
    "prompts": Prompts,
    "sample": Sample,
    "data": Data,
    "stop": Stop,
    "reference": Ema,
    "mix": Part,
}
_REFERENCE = ("ref_model_name_or_path", "ref_adapter", "sync_ref_model")  # what `reference` of the loop decides
_ALLOWED = {  # what may stand where several types may
    "reference": "initial, previous or {ema: NUMBER}, a number between 0 and 1",
    "data.accumulate": "last, all or a whole number of rounds, at least 1",
    "data.mix": "a list of {path, weight}",
}


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
        raise _readable(error, values) from error
    _check(found)
    return found


def _readable(error: ValidationError, values: Values) -> ValueError:
    """Returns what is wrong under its dotted key: a key that nobody knows before one that is missing for it."""
    every = error.errors()
    first = next((one for one in every if one["type"] == "extra_forbidden"), every[0])
    place = [str(part) for part in first["loc"] if not str(part).startswith(("literal", "function", "constrained"))]
    place = [part for part in place if part not in ("Ema", "int", "str", "dict[str,any]", "[key]")]
    dotted = ".".join(place)
    if first["type"] == "extra_forbidden":
        return unknown_key(dotted, _keys_beside(place))
    if dotted in _ALLOWED:
        return ValueError(f"{dotted}: expected {_ALLOWED[dotted]}; found {_value(values, place)!r}")
    if first["type"] in ("model_type", "dict_type"):
        keys = ", ".join(_BLOCKS[place[-1]].model_fields) if place[-1] in _BLOCKS else "key: value"
        return ValueError(f"{dotted}: expected a block {{{keys}}}, found {first['input']!r}")
    return ValueError(f"{dotted}: {first['msg'].lower()}, found {first['input']!r}")


def _value(values: Any, place: Sequence[str]) -> Any:
    """Returns what stands at a place, or where the way to it ends."""
    for part in place:
        values = values.get(part) if isinstance(values, Mapping) else values
    return values


def _keys_beside(place: Sequence[str]) -> list[str]:
    model: Any = RoundsConfig
    for part in place[:-1]:
        model = _BLOCKS.get(part, model)
    return list(model.model_fields)


def _check(found: RoundsConfig) -> None:
    """Refuses what could only fail in the midst of a night, or would be silently wrong."""
    try:
        check_engine(found.sample.engine)
    except ValueError as error:
        raise ValueError(f"sample.{error}") from error
    options = _pair_options(found)
    if options.rule not in ("human_own", "minimax") and not found.judge:
        raise ValueError(f"judge: pair.rule {options.rule} needs scores: name a judge, such as {{rm: path/to/rm}}")
    if options.score is not None and options.score not in found.judge:
        raise ValueError(f"pair.score: expected one of {', '.join(found.judge)}, found {options.score!r}")
    accumulate = found.data.accumulate
    if isinstance(accumulate, int) and accumulate < 1:
        raise ValueError(f"data.accumulate: expected last, all or at least 1, found {accumulate}")
    if options.rule == "minimax":
        raise ValueError(
            "pair.rule: minimax needs answers that were run against tests, which no stage of a loop does; allowed are "
            f"{', '.join(one for one in RULES if one != 'minimax')}"
        )
    if options.rule not in ("human_own", "best") and found.sample.samples < 2:
        raise ValueError(
            f"sample.samples: pair.rule {options.rule} compares answers to a prompt; expected at least 2, found "
            f"{found.sample.samples}"
        )
    if found.stop is not None:
        _check_stop(found, found.stop)
    config = _run_config(found)
    needs = losses.build(config.loss).needs
    _check_model(found, config, needs)
    _check_rows(options, config.loss["name"], needs)


def _check_model(found: RoundsConfig, config: RunConfig, needs: losses.Needs) -> None:
    """Refuses what would train another model than the loop samples, or against another reference than it says."""
    if needs.values:
        raise ValueError("loss: it trains a reward model, and the loop draws answers from what it trains")
    for key in _REFERENCE:
        if config.training.get(key):
            raise ValueError(f"{key}: {found.config} sets it, and the loop sets it itself, by `reference`; take it out")
    for key in ("adapter", "tokenizer", "chat_template", "revision"):
        value = getattr(config.model, key)
        if value != getattr(ModelOptions("start"), key):
            raise ValueError(
                f"{'train.' * _told(found.train, f'model.{key}')}model.{key}: answers are drawn from `start` as it is, "
                f"and would be another model's; found {value!r}; save it into a folder, and start there"
            )
    if isinstance(found.reference, Ema) and (config.peft is not None or not needs.ref_logps):
        why = "its weights would be averaged, and adapters' are not" if needs.ref_logps else "the loss reads none"
        raise ValueError(f"reference: {{ema}} cannot work here: {why}; allowed: initial, previous")
    if needs.ref_logps and (mode := config.training.get("reference")) in ("none", "adapter_off"):
        where = "train." * _told(found.train, "reference")
        raise ValueError(
            f"{where}reference: found {mode!r}, and the loop's is {found.reference!r}; allowed: auto, cached, live"
        )


def _pair_options(found: RoundsConfig) -> PairOptions:
    """Returns how pairs are made, under the dotted keys where that is wrong."""
    known = [one.name for one in fields(PairOptions)]
    for key in found.pair:
        if key not in known:
            raise unknown_key(f"pair.{key}", known)
    try:
        return found.pair_options()
    except ValueError as error:
        raise ValueError(f"pair.{error}") from error


def _run_config(found: RoundsConfig) -> RunConfig:
    """Returns the config of a training; what is wrong with it is said under ``train``, or with its file's name."""
    for key in ("model.name_or_path", "data.train", "output_dir", "resume_from_checkpoint", *_REFERENCE):
        if _told(found.train, key):
            raise ValueError(
                f"train.{key}: the loop sets it itself; write it in {found.config} or as a key of the loop"
            )
    try:
        find_config(found.config)
    except FileNotFoundError as error:
        raise ValueError(f"config: {error}") from error
    try:
        return found.run_config(
            {"model.name_or_path": found.start, "data.train": "pairs.jsonl", "output_dir": "unused"}
        )
    except ValueError as error:
        key = str(error).split(":")[0].split(" ")[0]
        where = f"train.{error}" if _told(found.train, key) else f"config: {found.config}: {error}"
        raise ValueError(where) from error


def _told(train: Mapping[str, Any], dotted: str) -> bool:
    """Whether ``train`` says a key, as `data.train: ...` or as `data: {train: ...}`."""
    parts = dotted.split(".")
    at: Any = train
    for depth, part in enumerate(parts):
        if ".".join(parts[depth:]) in at:
            return True
        if not isinstance(at.get(part), Mapping):
            return False
        at = at[part]
    return False


def _check_rows(options: PairOptions, loss: str, needs: losses.Needs) -> None:
    """Refuses rows that the loss does not read, or would read as something else than they were made for.

    Lists could be read as pairs, and pairs as lists of two; then another choice than ``pair``'s would be trained on.
    """
    made, name = gives(options.rule), f"pair.rule: {options.rule} gives"
    rules = {"pairs": "best_worst and its like", "labelled": "best, or a rule of pairs", "lists": "lists"}
    if made != needs.data and (made, needs.data) != ("pairs", "labelled"):
        rows = {"pairs": "pairs", "labelled": "single answers", "lists": "lists of answers"}
        raise ValueError(
            f"{name} {rows[made]}, and the loss {loss} needs {rows[needs.data]}; allowed with it: {rules[needs.data]}"
        )
    if needs.gold and not options.gold:
        raise ValueError(f"pair.gold: the loss {loss} needs a gold answer in every pair; found false, allowed: true")
    scored = [one for one in needs.columns if one in ("margin", "score_chosen", "score_rejected")]
    if options.rule == "human_own" and scored:
        raise ValueError(f"{name} pairs without scores, and the loss {loss} reads {', '.join(scored)}")


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
