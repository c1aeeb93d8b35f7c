"""The forms in which people keep preference rows, each turned into the canonical row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .columns import NUMBERS, PAIR_REWARDS, parse_columns
from .dialogue import common_prefix, is_dialogue, split_dialogues
from .known import near_formats, schema_of
from .lists import FIELDS, PAIR_FIELDS, is_list, ordered_pairs, pair_columns, read_answers, selected
from .messages import as_messages, as_tools, without_none
from .options import DataOptions
from .schema import Kind, Message, Row, RowError, Segment
from .tokens import FIELDS as ID_FIELDS
from .tokens import kind_of_ids

TEXT_FIELDS = ("prompt", "chosen", "rejected", "gold", "completion", "messages", "conversations", "system", "tools")
ALPACA_FIELDS = ("instruction", "input", "output", "history")
KNOWN_FIELDS = {*TEXT_FIELDS, *ALPACA_FIELDS, *NUMBERS, *PAIR_REWARDS}
KNOWN_FIELDS |= {"group", "label", "kto_tag", "chat_template_kwargs", *FIELDS}
KNOWN_FIELDS |= {*ID_FIELDS, "origin"}
"""Fields of our own forms; the report names all others that no schema reads."""


OWN_COLUMNS = ("group", "weight", "margin", "gold", "chat_template_kwargs", "tools")
"""Fields of ours that may stand beside those of a public set, and go before what the set says."""


def parse_row(raw: Mapping[str, Any], options: DataOptions, form: str | None = None) -> Row:
    """Reads one row of any supported form.

    Forms: ``prompt``/``chosen``/``rejected`` as text or messages, with the prompt its own field or the shared opening
    of both; ``completions`` with ``scores`` or ``rank``, or ``rejected`` as a list; raw HH-RLHF dialogues;
    ``prompt``/``completion``/``label`` or ``messages``/``label``; LLaMA-Factory's sharegpt rows (``conversations`` with
    ``chosen``/``rejected``, or with ``kto_tag``) and its alpaca rows (``instruction``, ``input``, ``history``); the
    public sets of ``known``, recognised by their fields.

    Args:
        raw: the row.
        options: what the loss wants of it.
        form: what the source's ``format:`` says; None finds out.

    Raises:
        RowError: why the row cannot be used.
    """
    given = raw
    schema = schema_of(given, form)
    if schema is not None:
        raw = schema.row(given) | {name: given[name] for name in OWN_COLUMNS if given.get(name) is not None}
    raw = _unified({name: value for name, value in raw.items() if value is not None})
    pair_as_list = options.kind == "lists" and "chosen" in raw and "rejected" in raw
    row = _listed(raw, options) if is_list(raw) or pair_as_list else _sided(raw, options, given)
    if "tools" in raw:
        row.tools = as_tools(raw["tools"])
    row.template_kwargs = without_none(raw.get("chat_template_kwargs", {}))
    if not isinstance(row.template_kwargs, dict):
        raise RowError("chat_template_kwargs must be a mapping")
    beside = {"margin"} if options.kind == "lists" else set()
    if "chosen" in raw:  # what stands beside a pair, or beside chosen and several rejected ones
        beside |= {name for name in FIELDS if given.get(name) is not None}
    row.unread = tuple(given.keys() - KNOWN_FIELDS | given.keys() & beside)
    if schema is not None:
        row.read_as = schema.title
        row.unread = tuple({*row.unread} - schema.needs - schema.reads)
        row.lent_group = given.get("group") is None
    return row


def _listed(raw: Mapping[str, Any], options: DataOptions) -> Row:
    """The row of several answers: a pair where a loss of pairs takes two of them, else a list."""
    answers = selected(read_answers(raw), raw.get("prompt"), options)
    rest = {name: value for name, value in raw.items() if name not in (*FIELDS, *PAIR_FIELDS)}
    columns = rest | answers.columns(always=options.kind == "lists")
    if options.kind != "lists" and len(answers) == 2:
        [(better, worse)] = ordered_pairs(answers.scores, options.lists_as)
        pair = pair_columns(columns, better, worse)
        pair |= {"chosen": answers.values[better], "rejected": answers.values[worse]}
        row = _pair(pair, options)
        row.columns = parse_columns(pair, "pair", options)
    else:
        sides = dict(zip(answers.names, answers.values, strict=True)) | _gold(raw, options)
        row = _row(rest, sides)
        row.scores = list(answers.scores)
        row.columns = parse_columns(columns, "list", options)
    row.repeated, row.left_out, row.tied = answers.repeated, answers.left_out, answers.tied
    return row


def _gold(raw: Mapping[str, Any], options: DataOptions) -> dict[str, Any]:
    if options.gold and "gold" not in raw:
        raise RowError("gold is missing, and the loss needs it")
    return {"gold": raw["gold"]} if options.gold else {}


def _sided(raw: dict[str, Any], options: DataOptions, given: Mapping[str, Any]) -> Row:
    """The row as a pair or as a labelled completion, with its columns; ``given`` is what stood in the file."""
    is_pair = "chosen" in raw or "rejected" in raw
    if is_pair:
        row = _pair(raw, options)
    elif options.kind != "labelled":
        if "completion" in raw or "label" in raw:
            pairs = options.kind == "pairs"
            needed = "pairs (chosen, rejected)" if pairs else "lists (completions with scores, or pairs)"
            raise RowError(
                f"a labelled row (completion, label) was given to a loss that needs {needed}: "
                "use a loss for labelled rows, such as kto"
            )
        raise RowError(f"chosen and rejected are missing{near_formats(given)}")
    elif "completion" not in raw and "messages" not in raw:
        raise RowError(f"completion is missing{near_formats(given)}")
    else:
        row = _labelled(raw, options)
    row.columns = parse_columns(raw, "pair" if is_pair else "labelled", options)
    return row


def kind_of_row(raw: Mapping[str, Any], form: str | None = None) -> Kind | None:
    """What a row is, whatever else is wrong with it; None where nobody can say."""
    try:
        schema = schema_of(raw, form)
        raw = raw if schema is None else schema.row(raw)
    except RowError:
        return None
    if (kind := kind_of_ids(raw)) is not None:
        return kind
    found = {name: value for name, value in raw.items() if value is not None}
    if is_list(found):
        return "lists"
    return "pairs" if "chosen" in found or "rejected" in found else "labelled"


def _unified(raw: dict[str, Any]) -> dict[str, Any]:
    """Gives LLaMA-Factory's fields our names."""
    if "kto_tag" in raw:
        raw.setdefault("label", raw["kto_tag"])
    if "conversations" in raw:
        turns = raw.pop("conversations")
        raw.setdefault("prompt" if "chosen" in raw or "rejected" in raw else "messages", turns)
        if not isinstance(turns, list):
            raise RowError(f"conversations must be a list of turns, found {type(turns).__name__}")
    if "instruction" in raw and "prompt" not in raw and "messages" not in raw:
        raw["prompt"] = _alpaca_prompt(raw)
        if "output" in raw and "chosen" not in raw:
            raw.setdefault("completion", raw["output"])
    return raw


def _alpaca_prompt(raw: Mapping[str, Any]) -> list[Message]:
    parts = [raw["instruction"], raw.get("input") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise RowError("instruction and input must be text")
    turns: list[Message] = []
    for turn in raw.get("history") or []:
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise RowError("history must be a list of [question, answer]")
        turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return [*turns, {"role": "user", "content": "\n".join(part for part in parts if part)}]


def _pair(raw: Mapping[str, Any], options: DataOptions) -> Row:
    for name in ("chosen", "rejected"):
        if name not in raw:
            raise RowError(f"{name} is missing")
    gold = _gold(raw, options)
    if raw["chosen"] == raw["rejected"]:
        raise RowError("chosen and rejected are equal")
    return _row(raw, {"chosen": raw["chosen"], "rejected": raw["rejected"]} | gold)


def _labelled(raw: Mapping[str, Any], options: DataOptions) -> Row:
    raw = dict(raw)
    if "completion" not in raw:
        raw["completion"] = raw.pop("messages")
    label = raw.get("label", options.default_label)
    if label is None:
        raise RowError("label is missing")
    if label not in (0, 1):
        raise RowError(f"label is {label!r}; allowed are true and false")
    row = _row(raw, {"completion": raw["completion"]})
    row.label = bool(label)
    return row


def _row(raw: Mapping[str, Any], sides: dict[str, Any]) -> Row:
    prompt, system = raw.get("prompt"), raw.get("system")
    for name, value in sides.items():
        if not isinstance(value, (str, list, Mapping)):
            raise RowError(f"{name} is of type {type(value).__name__}; allowed are text and a list of messages")
        if not value or (isinstance(value, str) and not value.strip()):
            raise RowError(f"{name} is empty")
    if prompt is not None and not isinstance(prompt, (str, list)):
        raise RowError(f"prompt is of type {type(prompt).__name__}; allowed are text and a list of messages")
    if isinstance(prompt, str) and not prompt.strip():
        raise RowError("prompt is empty")
    if isinstance(prompt, list) or not all(isinstance(value, str) for value in sides.values()):
        return _conversational_row(prompt, sides, system)
    if system:
        raise RowError("system is given with a plain-text prompt; give the prompt as messages")
    return _standard_row(prompt, sides)


# ---- standard rows: text ------------------------------------------------------------------------------------------


def _standard_row(prompt: str | None, sides: dict[str, str]) -> Row:
    if prompt is not None:
        return Row(prompt, {name: [(text, True)] for name, text in sides.items()})
    compared = {name: text for name, text in sides.items() if name != "gold"}
    if all(map(is_dialogue, compared.values())):
        prompt, completions = split_dialogues(compared)
    elif len(compared) == 1:
        raise RowError("prompt is missing")
    else:
        prompt, completions = _split_texts(compared)
    if "gold" in sides:
        completions["gold"] = [(sides["gold"].removeprefix(prompt), True)]
    return Row(prompt, {name: list(segments) for name, segments in completions.items()})


def _split_texts(sides: dict[str, str]) -> tuple[str, dict[str, list[Segment]]]:
    """The prompt is what all texts open with, up to the last whole word or line."""
    end = len(common_prefix(sides.values()))
    while end and not (
        all(text[end : end + 1].isspace() for text in sides.values())
        or any(text[:end].endswith("\n") for text in sides.values())
    ):
        end -= 1
    prompt = next(iter(sides.values()))[:end]
    if not prompt.strip():
        named = "chosen and rejected" if "chosen" in sides and len(sides) == 2 else "the completions"
        raise RowError(f"prompt is missing, and {named} do not open with a shared one")
    for name, text in sides.items():
        if not text[end:].strip():
            raise RowError(f"{name} is empty after the prompt that {'both' if len(sides) == 2 else 'all'} share")
    return prompt, {name: [(text[end:], True)] for name, text in sides.items()}


# ---- conversational rows: messages --------------------------------------------------------------------------------


def _conversational_row(prompt: str | list[Any] | None, values: dict[str, Any], system: Any) -> Row:
    sides = {name: as_messages(value, name) for name, value in values.items()}
    if isinstance(prompt, str):
        # Some sets keep the prompt's text beside conversations that already open with it.
        opened = all(turns[0]["role"] != "assistant" for turns in sides.values())
        prompt = None if opened else [{"role": "user", "content": prompt}]
    if prompt is None:
        opening, sides = _split_turns(sides)
    else:
        opening = as_messages(prompt, "prompt")
        sides = {name: _without_opening(turns, opening) for name, turns in sides.items()}
    if system and opening[0]["role"] != "system":
        opening = [*as_messages({"role": "system", "content": system}, "system"), *opening]
    for name, turns in sides.items():
        if not any(turn["role"] == "assistant" for turn in turns):
            raise RowError(f"{name} has no assistant's turn after the prompt")
    if {"chosen", "rejected"} <= sides.keys() and sides["chosen"] == sides["rejected"]:
        raise RowError("chosen and rejected are equal")
    return Row(opening, {name: list(turns) for name, turns in sides.items()})


def _split_turns(sides: dict[str, list[Message]]) -> tuple[list[Message], dict[str, list[Message]]]:
    """The prompt is the turns that the completions share; of one conversation, all before its last reply."""
    compared = [turns for name, turns in sides.items() if name != "gold"]
    if len(compared) == 1:
        replies = [index for index, turn in enumerate(compared[0]) if turn["role"] == "assistant"]
        end = replies[-1] if replies else 0
    else:
        same = [all(one == turns[0] for one in turns) for turns in zip(*compared, strict=False)]
        end = same.index(False) if False in same else len(same)
    opening = compared[0][:end]
    if not opening:
        raise RowError("prompt is missing, and the conversation does not open with one")
    return opening, {name: _without_opening(turns, opening) for name, turns in sides.items()}


def _without_opening(turns: list[Message], opening: list[Message]) -> list[Message]:
    """Some sets repeat the prompt's turns in front of each completion."""
    return turns[len(opening) :] if turns[: len(opening)] == opening else turns
