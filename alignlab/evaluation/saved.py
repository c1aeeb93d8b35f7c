"""What `alignlab eval` does: a trained model on held-out pairs and on answers that it samples, in figures and rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from alignlab import models
from alignlab.cache import PreparedSets, default_root
from alignlab.config import Dtype, ModelOptions
from alignlab.data import (
    LIST,
    DataOptions,
    DataReport,
    TextReader,
    kind_of,
    lengths,
    longest_text,
    open_sources,
    reading_options,
)
from alignlab.judges import Judge, build_judge
from alignlab.runtime import describe_environment, workers_of_a_rank
from alignlab.scoring import choose_layout

from .answers import AnswerRow, answer_rows, judge_answers
from .drawing import Sampling, first_of_each_prompt
from .figures import answer_figures, pair_figures
from .lists import ListRow, list_figures, score_lists
from .pairs import PairRow, score_pairs
from .rewards import bench_figures, is_bench, reward_bench, reward_figures, reward_pairs

Result = dict[str, Any]


@dataclass(frozen=True)
class EvalOptions:
    """What is evaluated, on what, and how.

    Attributes:
        model: folder or hub id of a language model or a reward model; a folder with an adapter brings its base.
        data: file, folder or hub id of preference pairs, or of lists of scored answers; for a reward model also of rows
            of RewardBench 2.
        reference: the model that rewards and divergence are measured against.
        tokenizer: by default the model's.
        beta: of the reward beta (log p - log q): calibration depends on it, accuracy does not.
        generate: sample answers to so many different prompts. samples: answers a prompt.
        judge: what judges answers against the chosen completions, as ``judges.build_judge`` takes it.
        output: JSON file of the figures. rows: JSONL file of every pair and answer.
    """

    model: str
    data: str
    reference: str | None = None
    tokenizer: str | None = None
    beta: float = 0.1
    generate: int = 0
    samples: int = 1
    judge: str | Mapping[str, Any] | None = None
    output: Path | None = None
    rows: Path | None = None
    batch_size: int = 8
    max_length: int | None = 1024
    max_new_tokens: int = 128
    seed: int = 0
    dtype: Dtype = "auto"
    layout: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        least = {"generate": 0, "samples": 1, "batch_size": 1, "max_new_tokens": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name}: expected at least {value}, found {getattr(self, name)}")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"--beta: expected a number above 0, found {self.beta}")
        if self.judge is not None and self.generate == 0:
            raise ValueError("--judge: there is nothing to judge; say how many answers to sample with --generate")
        for name in ("output", "rows"):
            path: Path | None = getattr(self, name)
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                raise ValueError(f"--{name}: {path} must be a file in a folder that exists")


def evaluate(options: EvalOptions, say: Callable[[str], None] = lambda _: None) -> Result:
    """Evaluates a model and writes what was asked for; returns the figures.

    Under a launcher every rank takes its share of the rows, and the main one computes, judges and writes; the others
    return an empty result. The figures do not depend on the number of ranks, nor on the batch size.

    Raises:
        ValueError: bad rows (file and line), options that contradict, a judge that does not exist.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    say = say if state.is_main_process else lambda _: None
    outputs = models.outputs_of(options.model)
    if outputs is not None:
        return _evaluate_rewards(options, outputs, state, say)
    judge = None if options.judge is None or not state.is_main_process else build_judge(options.judge)
    with _named("--tokenizer" if options.tokenizer else "model"):
        tokenizer = models.load_tokenizer(_model_options(options, options.model))
    are_lists = kind_of(open_sources(options.data)) == "lists"
    data = DataOptions(kind="lists" if are_lists else "pairs", max_length=options.max_length)
    sets = PreparedSets(default_root(), workers_of_a_rank(), state.is_main_process)
    prepared = sets.open(options.data, tokenizer, data, options.seed)
    with _named("model"):
        policy = _load(options, options.model, state.device)
    with _named("--reference"):
        reference = None if options.reference is None else _load(options, options.reference, state.device)
    _check_rooms(options, [one for one in (policy, reference) if one is not None], prepared.dataset, are_lists)
    pad = models.pad_token_id(tokenizer)
    mode = choose_layout(options.layout, [one for one in (policy, reference) if one is not None], pad)
    say(f"{prepared.report.summary()}; scoring {len(prepared.dataset)} {data.kind}")
    given: dict[str, Any] = {"batch_size": options.batch_size, "mode": mode, "progress": state.is_main_process}
    lists = score_lists(policy, prepared.dataset, pad, reference, **given) if are_lists else []
    pairs = [one.ends() for one in lists] or score_pairs(policy, prepared.dataset, pad, reference, **given)
    answers: list[AnswerRow] = []
    if options.generate:
        say(f"sampling {options.generate * options.samples} answers")
        asked = Sampling(options.generate, options.samples, options.seed, options.max_new_tokens, options.batch_size)
        runner = None if reference is None else lambda: nullcontext(reference)
        answers = answer_rows(policy, tokenizer, prepared.dataset, asked, options.data, runner, mode=mode)
    if not state.is_main_process:
        return {}
    if judge is not None:
        say(f"judging {len(answers)} answers by {judge.description}")
        judge_answers(judge, answers)
    result = _result(options, prepared.report, pairs, answers, judge, lists)
    _write(options, result, {"list": lists, "pair": [] if lists else pairs, "answer": answers})
    return result


def _check_rooms(options: EvalOptions, loaded: list[nn.Module], dataset: Any, are_lists: bool) -> None:
    """Refuses rows and answers that a model has no positions for."""
    longest = longest_text(dataset, (LIST,) if are_lists else ("chosen", "rejected"))
    first = first_of_each_prompt(dataset, options.generate) if options.generate else []
    answers = int(lengths(dataset, "prompt")[first].max(initial=0)) + options.max_new_tokens
    for one in loaded:
        models.check_room(one, longest, "--max_length", "the longest row has")
        if options.generate:
            models.check_room(one, answers, "--max_new_tokens", "prompts and answers have up to")


def _evaluate_rewards(options: EvalOptions, outputs: int, state: PartialState, say: Callable[[str], None]) -> Result:
    """Evaluates a reward model on pairs by subset, or on rows of RewardBench 2, read as its training rows were."""
    for name, why in (("reference", "needs no reference"), ("generate", "writes no answers")):
        if getattr(options, name):
            raise ValueError(f"--{name}: {options.model} is a reward model, which {why}")
    with _named("model"):
        loaded = models.load_model(_model_options(options, options.model), outputs=outputs)
        model: Any = loaded.requires_grad_(False).eval()
        model = model if models.is_quantised(model) else model.to(state.device)
    with _named("--tokenizer" if options.tokenizer else "model"):
        tokenizer = models.load_tokenizer(_model_options(options, options.model))
    record = models.reading_of(options.model)
    reading = {"max_length": options.max_length} if record is None else record["reading"]
    pad = models.pad_token_id(tokenizer)
    models.settle_reading(model, tokenizer, pad, outputs, reading)
    mode = choose_layout(options.layout, [model], pad)
    result: Result = {"model": options.model, "data": options.data, "outputs": outputs, "reading": reading}
    source = _as_groups(options.data)
    rows: list[Any]
    if source is None:
        raw = [one for part in open_sources(options.data) for one in part.read()]
        say(f"{len(raw)} rows of RewardBench 2")
        rows = reward_bench(model, raw, TextReader(tokenizer, reading), pad, mode)  # type: ignore[arg-type]
        result["bench"] = bench_figures(rows)
    else:
        sets = PreparedSets(default_root(), workers_of_a_rank(), state.is_main_process)
        prepared = sets.open(source, tokenizer, reading_options(reading), options.seed)
        say(f"{prepared.report.summary()}; scoring {len(prepared.dataset)} pairs")
        shown = state.is_main_process
        rows = reward_pairs(model, prepared.dataset, pad, batch_size=options.batch_size, mode=mode, progress=shown)
        result |= {"data_fingerprint": prepared.report.fingerprint, "rows_truncated": prepared.report.rows_truncated}
        result["pairs"] = reward_figures(rows)
    if not state.is_main_process:
        return {}
    result["environment"] = describe_environment()
    _write(options, result, {"bench" if source is None else "pair": rows})
    return result


def _as_groups(data: str) -> Any:
    """Returns where pairs are, a column ``subset`` being their group where they have none; None: of RewardBench 2."""
    [part] = open_sources(data)
    first = next((raw for _, raw in part.read() if isinstance(raw, Mapping)), {})
    if is_bench(first):
        return None
    if first.get("subset") is not None and first.get("group") is None:
        return {"path": data, "columns": {"group": "subset"}}
    return data


def _model_options(options: EvalOptions, path: str) -> ModelOptions:
    trust = options.trust_remote_code
    return ModelOptions(path, tokenizer=options.tokenizer, dtype=options.dtype, trust_remote_code=trust)


@contextmanager
def _named(option: str) -> Iterator[None]:
    """Says which option an error of loading is about."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error


def _load(options: EvalOptions, path: str, device: Any) -> nn.Module:
    model: Any = models.load_model(_model_options(options, path)).requires_grad_(False).eval()
    loaded: nn.Module = model if models.is_quantised(model) else model.to(device)
    return loaded


# ---- what is written -------------------------------------------------------------------------------------


def _result(
    options: EvalOptions,
    report: DataReport,
    pairs: list[PairRow],
    answers: list[AnswerRow],
    judge: Judge | None,
    lists: list[ListRow],
) -> Result:
    result: Result = {
        **{name: getattr(options, name) for name in ("model", "reference", "data", "beta", "seed", "max_new_tokens")},
        "data_fingerprint": report.fingerprint,
        "rows_truncated": report.rows_truncated,
        "pairs": pair_figures(pairs, options.beta),
    }
    if lists:
        result["lists"] = list_figures(lists, options.beta)
    if answers:
        result["answers"] = {"answers": len(answers), "per_prompt": options.samples, **answer_figures(answers)}
    if judge is not None:
        result["judge"] = {"name": judge.description, **judge.usage()}
    return {**result, "environment": describe_environment()}


def _write(options: EvalOptions, result: Result, parts: Mapping[str, Iterable[Any]]) -> None:
    if options.output is not None:
        text = json.dumps(_without_nan(result), indent=2, ensure_ascii=False, allow_nan=False)
        options.output.write_text(text + "\n", encoding="utf-8")
    if options.rows is not None:
        with options.rows.open("w", encoding="utf-8") as file:
            for kind, rows in parts.items():
                for row in rows:
                    line = _without_nan({"kind": kind, **asdict(row)})
                    file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    """Returns a value as JSON can hold it: a figure that is not defined is null."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
