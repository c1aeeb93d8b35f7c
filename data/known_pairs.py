"""Public sets that say themselves which answer is chosen and which rejected."""

from __future__ import annotations

from typing import Any

from .dialogue import is_dialogue
from .known_base import Raw, Schema, asked, fields, items, optional, optional_number, text, value
from .schema import RowError

ANSWERS = ("chosen", "rejected")


def _asked_and_answered(raw: Raw, question: str | None) -> dict[str, Any]:
    """Chosen and rejected as whole conversations, which hold their prompt, or as texts behind a question."""
    answers = {side: value(raw, side) for side in ANSWERS}
    whole = all(isinstance(turns, list) and len(turns) > 1 for turns in answers.values())
    if whole or question is None:
        return answers
    return {"prompt": asked(text(raw, question), raw.get("system")), **answers}


def _scores(raw: Raw, chosen: str, rejected: str) -> dict[str, Any]:
    found = {
        f"score_{side}": optional_number(raw, name) for side, name in zip(ANSWERS, (chosen, rejected), strict=True)
    }
    return {} if None in found.values() else found


def _as_it_is(raw: Raw) -> dict[str, Any]:
    return dict(raw)


def _ultrafeedback_cleaned(raw: Raw) -> dict[str, Any]:
    scores = _scores(raw, "chosen-rating", "rejected-rating")
    return _asked_and_answered(raw, "prompt") | scores | optional(raw, group="source")


def _orca(raw: Raw) -> dict[str, Any]:
    return {"prompt": asked(text(raw, "question"), raw.get("system")), **{side: text(raw, side) for side in ANSWERS}}


def _truthy(raw: Raw) -> dict[str, Any]:
    rest = {name: found for name, found in raw.items() if name != "system"}
    return {**rest, "prompt": asked(text(raw, "prompt"), raw["system"])}


def _orca_distilabel(raw: Raw) -> dict[str, Any]:
    if raw.get("status") == "tie":
        raise RowError("status is 'tie': neither answer is better")
    row = {"prompt": asked(text(raw, "input"), raw.get("system")), **{side: text(raw, side) for side in ANSWERS}}
    ratings = [rating for rating in (items(raw, "rating") if raw.get("rating") else []) if rating is not None]
    if len(ratings) == 2:
        row |= {"score_chosen": max(ratings), "score_rejected": min(ratings)}
    return row


def _distilabel(raw: Raw) -> dict[str, Any]:
    question = next((name for name in ("prompt", "instruction", "input") if raw.get(name) is not None), None)
    scores = _scores(raw, "chosen_rating", "rejected_rating")
    return _asked_and_answered(raw, question) | scores | optional(raw, group="dataset")


def _responses(raw: Raw) -> dict[str, Any]:
    rated = "rating" if "chosen_rating" in raw else "avg_rating"
    row = {side: text(raw, f"{side}_response") for side in ANSWERS}
    scores = _scores(raw, f"chosen_{rated}", f"rejected_{rated}")
    return {"prompt": asked(text(raw, "instruction")), **row, **scores, **optional(raw, group="source")}


def _capybara(raw: Raw) -> dict[str, Any]:
    scores = _scores(raw, "rating_chosen", "rating_rejected")
    return _asked_and_answered(raw, None) | scores | optional(raw, group="source")


def _tulu(raw: Raw) -> dict[str, Any]:
    scores = _scores(raw, "chosen_rating", "rejected_rating")
    return _asked_and_answered(raw, "prompt") | scores | optional(raw, group="source")


def _skywork(raw: Raw) -> dict[str, Any]:
    return _asked_and_answered(raw, None) | optional(raw, group="source")


def _magpie(raw: Raw) -> dict[str, Any]:
    row = _asked_and_answered(raw, "instruction")
    answers, rewards = raw.get("responses"), raw.get("rewards_armorm")
    if isinstance(answers, list) and isinstance(rewards, list) and len(answers) == len(rewards):
        scores = {answer: reward.get("score") for answer, reward in zip(answers, rewards, strict=True)}
        found = {f"score_{side}": scores.get(_last_words(row[side])) for side in ANSWERS}
        row |= {} if None in found.values() else found
    return row


def _last_words(turns: Any) -> Any:
    last = turns[-1] if isinstance(turns, list) and turns else turns
    return last.get("content") if isinstance(last, dict) else last


def _code_pairs(raw: Raw) -> dict[str, Any]:
    return {"prompt": asked(text(raw, "input")), "chosen": text(raw, "accepted"), "rejected": text(raw, "rejected")}


def _alpaca_outputs(raw: Raw) -> dict[str, Any]:
    answers = items(raw, "output")
    if len(answers) != 2:
        raise RowError(f"output holds {len(answers)} answers; it must hold the better and the worse one")
    kept = {name: found for name, found in raw.items() if name != "output"}
    return {**kept, "chosen": answers[0], "rejected": answers[1]}


def _conversations(raw: Raw) -> bool:
    return all(isinstance(raw[side], list) for side in ANSWERS)


def _texts(raw: Raw) -> bool:
    return not any(isinstance(raw[side], list) for side in ANSWERS)


def _all_texts(raw: Raw) -> bool:
    return all(isinstance(raw[name], str) for name in ("system", "prompt", *ANSWERS))


def _dialogues(raw: Raw) -> bool:
    return all(isinstance(raw[side], str) and is_dialogue(raw[side]) for side in ANSWERS)


def _two_outputs(raw: Raw) -> bool:
    return isinstance(raw["output"], list)


ALPACA = fields("input history system")
PAIRS = (
    Schema(
        "ultrafeedback_binarized",
        "UltraFeedback (binarized)",
        fields("prompt prompt_id chosen rejected score_chosen score_rejected"),
        _as_it_is,
        fields("messages"),
    ),
    Schema(
        "ultrafeedback_cleaned",
        "UltraFeedback (argilla's, cleaned)",
        fields("prompt chosen rejected chosen-rating rejected-rating"),
        _ultrafeedback_cleaned,
        fields("source"),
    ),
    Schema(
        "orca_dpo_pairs",
        "Orca DPO pairs",
        fields("question chosen rejected"),
        _orca,
        fields("system"),
        lacks=fields("prompt"),
        fits=_texts,
    ),
    Schema(
        "truthy_dpo",
        "Truthy DPO",
        fields("system prompt chosen rejected"),
        _truthy,
        lacks=fields(
            "question instruction input prompt_id chosen_rating rejected_rating chosen-rating rejected-rating"
        ),
        fits=_all_texts,
    ),
    Schema(
        "orca_distilabel",
        "Orca DPO pairs (argilla's, rated)",
        fields("input chosen rejected rating status"),
        _orca_distilabel,
        fields("system"),
    ),
    Schema(
        "distilabel",
        "a distilabel set",
        fields("chosen rejected chosen_rating rejected_rating"),
        _distilabel,
        fields("prompt instruction input system dataset"),
    ),
    Schema(
        "distilabel_responses",
        "a distilabel set (chosen_response)",
        fields("instruction chosen_response rejected_response"),
        _responses,
        fields("chosen_rating rejected_rating chosen_avg_rating rejected_avg_rating source"),
    ),
    Schema(
        "capybara_dpo",
        "Capybara-DPO",
        fields("chosen rejected rating_chosen rating_rejected"),
        _capybara,
        fields("source"),
    ),
    Schema("tulu3", "Tulu 3 preferences", fields("id source prompt chosen rejected"), _tulu, fits=_conversations),
    Schema(
        "tulu3_rated",
        "Tulu 3 preferences (rated)",
        fields("id source prompt chosen rejected chosen_rating rejected_rating"),
        _tulu,
        fits=_conversations,
    ),
    Schema(
        "skywork",
        "Skywork-Reward-Preference",
        fields("chosen rejected source"),
        _skywork,
        lacks=fields("prompt instruction question input conversations"),
        fits=_conversations,
    ),
    Schema(
        "magpie_dpo",
        "Magpie DPO",
        fields("uuid instruction chosen rejected"),
        _magpie,
        fields("responses rewards_armorm"),
    ),
    Schema("code_pairs", "accepted and rejected code", fields("input accepted rejected"), _code_pairs),
    Schema(
        "hh_rlhf",
        "HH-RLHF",
        fields("chosen rejected"),
        _as_it_is,
        lacks=fields("prompt instruction question input conversations"),
        fits=_dialogues,
    ),
    Schema(
        "alpaca",
        "LLaMA-Factory's alpaca form",
        fields("instruction chosen rejected"),
        _as_it_is,
        ALPACA,
        lacks=fields("chosen_rating rejected_rating"),
    ),
    Schema(
        "alpaca_outputs",
        "LLaMA-Factory's alpaca form (two outputs)",
        fields("instruction output"),
        _alpaca_outputs,
        ALPACA,
        lacks=fields("chosen rejected kto_tag"),
        fits=_two_outputs,
    ),
    Schema("sharegpt", "LLaMA-Factory's sharegpt form", fields("conversations chosen rejected"), _as_it_is),
)
