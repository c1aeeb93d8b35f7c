"""Public sets of two answers and a verdict on them: people's votes, strengths of preference, scores of both."""

from __future__ import annotations

from typing import Any

from .known_base import (
    Raw,
    Schema,
    asked,
    decided,
    fields,
    items,
    number,
    one_of,
    optional,
    optional_number,
    text,
    value,
    verdict,
)
from .schema import Message, RowError

TURN = "<extra_id_1>"


def _strength(raw: Raw, field: str) -> float:
    """A strength of preference: below 0 for the first answer, above 0 for the second."""
    found = number(raw, field)
    if found == 0:
        raise RowError(f"{field} is 0: neither answer is better")
    return found


def _helpsteer2(raw: Raw) -> dict[str, Any]:
    strength = _strength(raw, "preference_strength")
    answers = decided(text(raw, "response_1"), text(raw, "response_2"), strength > 0)
    return {"prompt": helpsteer_turns(text(raw, "prompt")), **answers, "margin": abs(strength)}


def helpsteer_turns(prompt: str) -> list[Message]:
    """Returns HelpSteer2's prompt as messages: one question, or turns behind ``<extra_id_1>User`` and ``Assistant``.

    Raises:
        RowError: a turn is neither's.
    """
    first, *later = prompt.split(TURN)
    turns = asked(first.strip("\n"))
    for part in later:
        name, _, said = part.partition("\n")
        role = {"User": "user", "Assistant": "assistant"}.get(name.strip())
        if role is None:
            raise RowError(f"prompt has a turn of {name.strip()!r}; allowed are User and Assistant")
        if said.strip():
            turns.append({"role": role, "content": said.strip("\n")})
    return turns


def _helpsteer3(raw: Raw) -> dict[str, Any]:
    strength = _strength(raw, "overall_preference")
    answers = decided(text(raw, "response1"), text(raw, "response2"), strength > 0)
    return {"prompt": items(raw, "context"), **answers, "margin": abs(strength), **optional(raw, group="domain")}


def _safe_rlhf(raw: Raw) -> dict[str, Any]:
    return _safe_rlhf_by(raw, "better_response_id")


def _safer_rlhf(raw: Raw) -> dict[str, Any]:
    return _safe_rlhf_by(raw, "safer_response_id")


def _safe_rlhf_by(raw: Raw, field: str) -> dict[str, Any]:
    better, safer = (one_of(raw, name, (0, 1)) for name in ("better_response_id", "safer_response_id"))
    rewards = [{"better": float(better == side), "safer": float(safer == side)} for side in (0, 1)]
    second = one_of(raw, field, (0, 1)) == 1
    answers = decided(text(raw, "response_0"), text(raw, "response_1"), second, rewards=(rewards[0], rewards[1]))
    return {"prompt": asked(text(raw, "prompt")), **answers}


def _arena(raw: Raw) -> dict[str, Any]:
    winner = text(raw, "winner")
    if winner in ("tie", "tie (bothbad)", "both_bad"):
        raise RowError(f"winner is {winner!r}: neither answer is better")
    second = one_of(raw, "winner", ("model_a", "model_b")) == 1
    answers = decided(items(raw, "conversation_a"), items(raw, "conversation_b"), second)
    return answers | optional(raw, group="language")


def _arena_votes(raw: Raw) -> dict[str, Any]:
    votes = [verdict(value(raw, f"winner_{one}"), f"winner_{one}") for one in ("model_a", "model_b", "tie")]
    if votes[2]:
        raise RowError("winner_tie is 1: neither answer is better")
    if votes[0] == votes[1]:
        raise RowError("winner_model_a and winner_model_b must be 1 and 0, or 0 and 1")
    questions = items(raw, "prompt")
    sides = []
    for name in ("response_a", "response_b"):
        replies = items(raw, name)
        if len(replies) != len(questions):
            raise RowError(f"{name} has {len(replies)} turns and prompt has {len(questions)}")
        turns = []
        for question, reply in zip(questions, replies, strict=True):
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        sides.append(turns)
    return decided(sides[0], sides[1], votes[1])


def _shp(raw: Raw) -> dict[str, Any]:
    second = one_of(raw, "labels", (1, 0)) == 1
    scores = optional_number(raw, "score_A"), optional_number(raw, "score_B")
    answers = decided(text(raw, "human_ref_A"), text(raw, "human_ref_B"), second, score=scores)
    return {"prompt": asked(text(raw, "history")), **answers, **optional(raw, group="domain")}


def _summaries(raw: Raw) -> dict[str, Any]:
    info, summaries = value(raw, "info"), items(raw, "summaries")
    if not isinstance(info, dict) or len(summaries) != 2 or not all(isinstance(one, dict) for one in summaries):
        raise RowError("info must be a mapping, and summaries must be two of them")
    first, second = (" " + text(one, "text").strip() for one in summaries)
    answers = decided(first, second, one_of(raw, "choice", (0, 1)) == 1)
    return {"prompt": _to_summarise(info), **answers, **optional(info, group="subreddit")}


def _to_summarise(info: Raw) -> str:
    """A post or an article as the set's authors put it before a model, up to ``TL;DR:``."""
    if info.get("post") is None:
        return f"TITLE: {info.get('title') or ''}\n\nARTICLE: {text(info, 'article')}\n\nTL;DR:"
    opening = f"SUBREDDIT: r/{info['subreddit']}\n\n" if info.get("subreddit") else ""
    return f"{opening}TITLE: {info.get('title') or ''}\n\nPOST: {text(info, 'post')}\n\nTL;DR:"


def _webgpt(raw: Raw) -> dict[str, Any]:
    scores = number(raw, "score_0"), number(raw, "score_1")
    if scores[0] == scores[1]:
        raise RowError("score_0 and score_1 are equal: neither answer is better")
    question = value(raw, "question")
    asking = text(question, "full_text") if isinstance(question, dict) else text(raw, "question")
    answers = decided(text(raw, "answer_0"), text(raw, "answer_1"), scores[1] > scores[0], score=scores)
    return {"prompt": asked(asking), **answers}


def _prometheus(raw: Raw) -> dict[str, Any]:
    second = one_of(raw, "orig_preference", ("A", "B")) == 1
    scores = optional_number(raw, "orig_score_A"), optional_number(raw, "orig_score_B")
    answers = decided(text(raw, "orig_response_A"), text(raw, "orig_response_B"), second, score=scores)
    return {"prompt": asked(text(raw, "orig_instruction")), **answers}


SAFE = fields("prompt response_0 response_1 better_response_id safer_response_id")
CHOICES = (
    Schema(
        "helpsteer2",
        "HelpSteer2 (preferences)",
        fields("prompt response_1 response_2 preference_strength"),
        _helpsteer2,
    ),
    Schema(
        "helpsteer3",
        "HelpSteer3",
        fields("context response1 response2 overall_preference"),
        _helpsteer3,
        fields("domain"),
    ),
    Schema("pku_saferlhf", "PKU-SafeRLHF, by better_response_id", SAFE, _safe_rlhf),
    Schema("pku_saferlhf_safer", "PKU-SafeRLHF, by safer_response_id", SAFE, _safer_rlhf, forced=True),
    Schema(
        "arena", "Arena human preference", fields("conversation_a conversation_b winner"), _arena, fields("language")
    ),
    Schema(
        "arena_votes",
        "Arena human preference (prompt and responses)",
        fields("prompt response_a response_b winner_model_a winner_model_b winner_tie"),
        _arena_votes,
    ),
    Schema("shp", "SHP", fields("history human_ref_A human_ref_B labels"), _shp, fields("score_A score_B domain")),
    Schema("summarize_from_feedback", "summarize_from_feedback", fields("info summaries choice"), _summaries),
    Schema("webgpt", "WebGPT comparisons", fields("question answer_0 answer_1 score_0 score_1"), _webgpt),
    Schema(
        "prometheus",
        "Prometheus preference",
        fields("orig_instruction orig_response_A orig_response_B orig_preference"),
        _prometheus,
        fields("orig_score_A orig_score_B"),
    ),
)
