"""Benchmarks whose answers others judge: questions of AlpacaEval and MT-Bench in, their files of answers out."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from alignlab.answers import AnswerRow, array_part, made_beside, read_answers
from alignlab.checkpoints import whole_file
from alignlab.data import RowError, open_sources, prompt_id
from alignlab.runtime import is_main, wait_for_all

from .answering import Sampled, sample

logger = logging.getLogger(__name__)
SHOWN = 20  # of rows that are broken, or of questions without an answer


@dataclass
class Question:
    """One question of a benchmark.

    Attributes:
        place: file and line. row: as it stands there. turns: what is asked, one after another.
        answers: the model's, one a turn; empty where it was not asked.
    """

    place: str
    row: Mapping[str, Any]
    turns: list[str]
    answers: list[str] = field(default_factory=list)

    def conversation(self) -> list[dict[str, str]]:
        """Returns the messages up to the next turn, the model's own answers among them."""
        found = [{"role": "user", "content": self.turns[0]}]
        for answer, turn in zip(self.answers, self.turns[1:], strict=False):
            found += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
        return found


@dataclass(frozen=True)
class _Form:
    turns: Callable[[Mapping[str, Any]], list[str]]
    written: Callable[[Sequence[Question], str], str]
    key: str = ""  # of a row, and of no other


def answer_benchmark(asked: Sampled, form: str, generator: str) -> None:
    """Answers the questions of a benchmark, one answer each, and writes them as the benchmark's own judges read them.

    The answers to each turn lie in ``OUTPUT.turns/turn-N.jsonl``, as ``sample`` writes them: a kill loses one batch. A
    turn is asked after the model's own answers to those before it.

    Args:
        asked: ``prompts`` is the benchmark's file of questions.
        form: "alpaca_eval" (a JSON list of ``{"instruction", ...}``) or "mt_bench" (lines of ``{"question_id",
            "turns", ...}``). generator: the name of the model in the file.

    Raises:
        ValueError: broken rows by file and line, an output that is something else, or work for more than one job.
    """
    if form not in FORMS:
        raise ValueError(f"--as: expected one of {', '.join(FORMS)}, found {form!r}")
    if asked.options.samples != 1:
        raise ValueError(f"--samples: a benchmark takes 1 answer to a question, found {asked.options.samples}")
    if array_part()[1] > 1:
        raise ValueError("--as: the questions of a benchmark are one job's (of as many ranks as you like), no array's")
    if asked.most is not None and asked.most < 1:  # -1 would leave the last question out
        raise ValueError(f"--most: expected at least 1, found {asked.most}")
    questions = read_questions(asked.prompts, form)[: asked.most]
    digest = hashlib.sha256(json.dumps([one.row for one in questions], sort_keys=True).encode()).hexdigest()
    of = {"step": "benchmark", "as": form, "generator": generator, "questions": digest, **asked.options.of()}
    before = made_beside(asked.output, of).read().get("of", {})
    made_beside(asked.output, {**of, "model": before.get("model")}).check_free(asked.output)
    models = [_answer_turn(asked, questions, turn) for turn in range(max(len(one.turns) for one in questions))]
    made = made_beside(asked.output, {**of, "model": models[0]})
    wait_for_all()
    if is_main() and not made.is_done():
        made.check_free(asked.output)
        counts = {"questions": len(questions), "turns": sum(len(one.turns) for one in questions)}
        counts["empty"] = sum(not text.strip() for one in questions for text in one.answers)
        with whole_file(asked.output, lambda aside: made.announce(asked.output, aside, counts)) as file:
            file.write(FORMS[form].written(questions, generator).encode())
        logger.info("%s: %d questions answered by %s", asked.output, len(questions), generator)
    wait_for_all()


def read_questions(path: Any, form: str) -> list[Question]:
    """Reads a benchmark's file of questions.

    Raises:
        ValueError: there is no such file, it holds no row, or rows are broken: the first twenty by file and line.
    """
    if not Path(path).is_file():
        raise ValueError(f"--prompts: {path}: no such file; --as {form} answers a file of questions")
    found, bad, ids = list[Question](), list[str](), dict[Any, str]()
    for place, raw in open_sources(str(path))[0].read():
        try:
            if not isinstance(raw, Mapping):
                raise RowError(raw.reason)
            found.append(Question(place, raw, FORMS[form].turns(raw)))
            if (key := FORMS[form].key) and ids.setdefault(raw[key], place) != place:
                raise RowError(f"{key} {raw[key]!r} is that of {ids[raw[key]]} too")
        except RowError as error:
            bad.append(f"  {place}: {error}")
    if bad:
        raise ValueError(f"--prompts: {len(bad)} rows are no questions of {form}:\n" + "\n".join(bad[:SHOWN]))
    if not found:
        raise ValueError(f"--prompts: {path} holds no question")
    return found


def _answer_turn(asked: Sampled, questions: Sequence[Question], turn: int) -> str | None:
    """Asks one turn of all questions that have it, and keeps the answers; says which cannot be asked.

    Returns:
        the fingerprint of the model; None where nothing was asked.
    """
    here = [one for one in questions if turn < len(one.turns)]
    ids = {one.place: prompt_id(one.conversation()) for one in here if all(text.strip() for text in one.answers)}
    rows = _drawn(asked, [one for one in here if one.place in ids], turn) if ids else {}
    silent = []
    for one in here:
        row = rows.get(ids.get(one.place, ""))
        one.answers.append(row.answers[0].text if row else "")
        if row is None:
            why = "it leaves the model no room" if one.place in ids else "an earlier answer is empty"
            silent.append(f"  {one.place}: {why}")
    if silent:
        logger.warning(
            "questions whose turn %d is not asked, and its answer left empty: %d\n%s",
            turn + 1, len(silent), "\n".join(silent[:SHOWN]),
        )  # fmt: skip
    return next((row.model for row in rows.values()), None)


def _drawn(asked: Sampled, questions: Sequence[Question], turn: int) -> dict[str, AnswerRow]:
    """Returns the answers to one turn by the ids of their prompts."""
    output = asked.output.with_name(f"{asked.output.name}.turns") / f"turn-{turn + 1}.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    prompts = [{"prompt": one.conversation()} for one in questions]
    sample(replace(asked, prompts=prompts, output=output, most=None))
    gc.collect()
    torch.cuda.empty_cache()  # the next turn loads the model again
    return {row.prompt_id: row for row in read_answers(output)}


# ---- AlpacaEval: github.com/tatsu-lab/alpaca_eval, README, "Evaluating a model" --------------------------------------


def _instruction(raw: Mapping[str, Any]) -> list[str]:
    context = raw.get("input") or ""
    if not isinstance(context, str):
        raise RowError(f"input is of type {type(context).__name__}; allowed is text")
    return ["\n".join(part for part in (_text(raw.get("instruction"), "instruction"), context) if part)]


def _model_outputs(questions: Sequence[Question], generator: str) -> str:
    """A JSON list; what else a question has (``dataset``, ``datasplit``) stays with it."""
    rows = [
        {"instruction": one.row["instruction"], "output": one.answers[0], "generator": generator}
        | {key: value for key, value in one.row.items() if key not in ("instruction", "output", "generator")}
        for one in questions
    ]
    return json.dumps(rows, indent=1) + "\n"


# ---- MT-Bench: github.com/lm-sys/FastChat, fastchat/llm_judge --------------------------------------------------------


def _turns(raw: Mapping[str, Any]) -> list[str]:
    name, turns = raw.get("question_id"), raw.get("turns")
    if type(name) is not int and not (isinstance(name, str) and name.strip()):
        raise RowError(f"question_id must be a whole number or a text, found {name!r}")
    if not isinstance(turns, list) or not turns:
        raise RowError(f"turns must be a list of questions, found {turns!r}")
    return [_text(turn, f"turns[{index}]") for index, turn in enumerate(turns)]


def _model_answers(questions: Sequence[Question], generator: str) -> str:
    """A line a question; ``answer_id`` is a hash of who answered what, where FastChat draws one."""
    lines, now = [], time.time()
    for one in questions:
        name, choices = one.row["question_id"], [{"index": 0, "turns": one.answers}]
        answer_id = hashlib.sha256(json.dumps([generator, name, choices]).encode()).hexdigest()[:22]
        row = {"question_id": name, "answer_id": answer_id, "model_id": generator, "choices": choices, "tstamp": now}
        lines.append(json.dumps(row) + "\n")
    return "".join(lines)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{name} must be a text, found {value!r}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(f"{name} has half of a surrogate pair")
    return value


FORMS = {
    "alpaca_eval": _Form(_instruction, _model_outputs),
    "mt_bench": _Form(_turns, _model_answers, key="question_id"),
}
