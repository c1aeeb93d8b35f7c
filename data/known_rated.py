"""Public sets that grade answers one by one: several to a prompt with scores or ranks, or one with a verdict."""

from __future__ import annotations

from typing import Any

from .known_base import Raw, Schema, asked, fields, items, number, optional, text, value, verdict
from .schema import RowError

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

# Of graded answers, by what people call them; the first that a row has is read.
QUESTIONS = ("prompt", "problem", "question", "instruction")
GRADED = ("generated_solution", "generations", "generation", "completion", "responses", "response", "solution", "code")
VERDICTS = ("passed", "is_correct", "correct", "correctness_math_verify")


def _ultrafeedback(raw: Raw) -> dict[str, Any]:
    answers = items(raw, "completions")
    texts, scores, rewards = [], [], []
    for index, answer in enumerate(answers):
        try:
            texts.append(text(answer, "response"))
            scores.append(number(answer, "overall_score"))
            fine = number(answer, "fine-grained_score") if answer.get("fine-grained_score") is not None else 10.0
            if scores[-1] == 10 and fine <= 2:
                raise RowError(f"overall_score is 10 and fine-grained_score {fine:g}: an early revision wrote 10 for 1")
            rewards.append(_aspects(answer))
        except RowError as error:
            raise RowError(f"completions[{index}].{error}") from None
    row = {"prompt": asked(text(raw, "instruction")), "completions": texts, "scores": scores}
    if all(rewards):
        row["rewards"] = rewards
    return row | optional(raw, group="source")


def _aspects(answer: Raw) -> dict[str, float]:
    """The ratings of the four aspects; nothing where one of them is not a number ("N/A")."""
    given = answer.get("annotations") or {}
    try:
        return {name: float(given[name]["Rating"]) for name in ASPECTS}
    except (KeyError, TypeError, ValueError):
        return {}


def _rated_answers(raw: Raw) -> bool:
    answers = raw["completions"]
    return isinstance(answers, list) and all(isinstance(one, dict) and "response" in one for one in answers)


def _nectar(raw: Raw) -> dict[str, Any]:
    answers = items(raw, "answers")
    texts, ranks = [], []
    for index, answer in enumerate(answers):
        try:
            texts.append(" " + text(answer, "answer").lstrip(" "))
            ranks.append(number(answer, "rank"))
        except RowError as error:
            raise RowError(f"answers[{index}].{error}") from None
    return {"prompt": text(raw, "prompt").rstrip(" "), "completions": texts, "ranks": ranks}


def _ranked_answers(raw: Raw) -> bool:
    answers = raw["answers"]
    return isinstance(answers, list) and all(isinstance(one, dict) and "answer" in one for one in answers)


def _generations(raw: Raw) -> dict[str, Any]:
    question = "instruction" if raw.get("instruction") is not None else "prompt"
    ratings = items(raw, "ratings")
    scores = [number({f"ratings[{index}]": one}, f"ratings[{index}]") for index, one in enumerate(ratings)]
    answers = items(raw, "generations")
    return {"prompt": asked(text(raw, question), raw.get("system_prompt")), "completions": answers, "scores": scores}


def _beavertails(raw: Raw) -> dict[str, Any]:
    label = verdict(value(raw, "is_safe"), "is_safe")
    return {"prompt": asked(text(raw, "prompt")), "completion": text(raw, "response"), "label": label}


def _attributes(raw: Raw) -> dict[str, Any]:
    rewards = {name: number(raw, name) for name in ATTRIBUTES}
    row = {"prompt": asked(text(raw, "prompt")), "completion": text(raw, "response"), "rewards": rewards}
    return row | optional(raw, label="label")


def _graded(raw: Raw) -> dict[str, Any]:
    question, answer, judged = (_first(raw, names) for names in (QUESTIONS, GRADED, VERDICTS))
    if question is None or answer is None or judged is None:
        needed = "; of ".join(", ".join(names) for names in (QUESTIONS, GRADED, VERDICTS))
        raise RowError(f"graded answers need one field each of {needed}")
    opening = raw[question] if isinstance(raw[question], list) else asked(text(raw, question))
    row = {"prompt": opening} | optional(raw, group="source")
    if isinstance(raw[judged], list):
        scores = [float(verdict(one, f"{judged}[{index}]")) for index, one in enumerate(raw[judged])]
        return row | {"completions": items(raw, answer), "scores": scores}
    label = verdict(raw[judged], judged)
    return row | {"completion": raw[answer] if isinstance(raw[answer], list) else text(raw, answer), "label": label}


def _is_graded(raw: Raw) -> bool:
    return all(_first(raw, names) for names in (QUESTIONS, GRADED, VERDICTS))


def _first(raw: Raw, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if raw.get(name) is not None), None)


RATED = (
    Schema(
        "ultrafeedback",
        "UltraFeedback (four rated completions)",
        fields("instruction completions"),
        _ultrafeedback,
        fields("source"),
        fits=_rated_answers,
    ),
    Schema("nectar", "Nectar", fields("prompt answers"), _nectar, fits=_ranked_answers),
    Schema(
        "distilabel_ratings",
        "a distilabel set (generations and ratings)",
        fields("generations ratings"),
        _generations,
        fields("instruction prompt system_prompt"),
        lacks=fields("chosen rejected"),
    ),
    Schema("beavertails", "BeaverTails", fields("prompt response is_safe"), _beavertails),
    Schema(
        "helpsteer_ratings",
        "HelpSteer (rated answers)",
        fields("prompt response") | frozenset(ATTRIBUTES),
        _attributes,
        fields("label"),
    ),
    Schema(
        "graded",
        "graded answers",
        frozenset(),
        _graded,
        frozenset((*QUESTIONS, *GRADED, *VERDICTS, "source")),
        lacks=fields("chosen rejected label kto_tag"),
        fits=_is_graded,
    ),
)
