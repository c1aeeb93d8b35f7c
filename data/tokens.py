"""Rows that are token ids already, as sampling wrote them: read as they are, and never tokenised again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from .columns import parse_columns
from .lists import FIELDS as LIST_FIELDS
from .lists import PAIR_FIELDS, ordered_pairs, pair_columns, read_answers, selected
from .options import DataOptions
from .schema import Kind, Row, RowError
from .tokenise import Completion, Encoded

PROMPT, LISTED = "prompt_ids", "completions_ids"
SIDES = ("chosen", "rejected", "gold", "completion")
FIELDS = (PROMPT, LISTED, *(f"{name}_ids" for name in SIDES), *(f"{name}_mask" for name in SIDES))
_SHOWN = 40


def kind_of_ids(raw: Mapping[str, Any]) -> Kind | None:
    """Returns what a row of token ids is; None where its completions are none."""
    kinds: dict[str, Kind] = {LISTED: "lists", "chosen_ids": "pairs", "rejected_ids": "pairs"}
    kinds["completion_ids"] = "labelled"
    return next((kind for name, kind in kinds.items() if raw.get(name) is not None), None)


def holds_ids(raw: Mapping[str, Any]) -> bool:
    """True for a row whose completions are token ids; without those of its prompt it is refused, not read as text."""
    return kind_of_ids(raw) is not None and (PROMPT in raw or "prompt" not in raw)


def parse_ids(raw: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> tuple[Row, Encoded]:
    """Reads ``prompt_ids`` with ``chosen_ids``, ``rejected_ids`` (and ``gold_ids``), or ``completion_ids`` and a label.

    ``completions_ids`` with ``scores`` is a list of answers, read as lists of texts are.

    Text to tokens gives other tokens than the model drew in some percent of answers, and writes an end behind an answer
    that was cut off. So tokens are what is trained on, every one of them unless ``chosen_mask`` and its like say
    otherwise; texts that stand beside them are for people, and show whether this tokenizer wrote them.

    Raises:
        RowError: ids that are none or of another tokenizer, a side that is missing, sides that are equal.
    """
    kind = kind_of_ids(raw)
    if kind == "labelled" and options.kind != "labelled":
        needed = f"labelled rows were given to a loss that needs {options.kind}"
        raise RowError(f"chosen_ids and rejected_ids are missing: {needed}")
    encoded = Encoded(_ids(raw, PROMPT, tokenizer))
    if kind == "lists":
        return _listed({**raw, "completions": _several(raw, tokenizer)}, encoded, options)
    names = ["completion"] if kind == "labelled" else ["chosen", "rejected", *(["gold"] if options.gold else [])]
    for name in names:
        ids = _ids(raw, f"{name}_ids", tokenizer)
        encoded.completions[name] = Completion(ids, _mask(raw.get(f"{name}_mask"), f"{name}_mask", len(ids)))
        _check_text(raw.get(name), ids, name, tokenizer)
    if kind == "pairs" and encoded.completions["chosen"].ids == encoded.completions["rejected"].ids:
        raise RowError("chosen_ids and rejected_ids are equal")
    if kind == "pairs" and options.kind == "lists":
        sides = {name: tuple(encoded.completions.pop(name).ids) for name in ("chosen", "rejected")}
        return _listed({**raw, **sides}, encoded, options)
    row = Row(raw.get("prompt") or "", {name: [] for name in names})
    if kind == "labelled":
        label = raw.get("label", options.default_label)
        if label not in (0, 1):
            raise RowError("label is missing" if label is None else f"label is {label!r}; allowed are true and false")
        row.label = bool(label)
    row.columns = parse_columns(raw, "labelled" if kind == "labelled" else "pair", options)
    return row, encoded


def _several(raw: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """Returns the answers of a list as tuples of ids."""
    texts, found = raw.get("completions"), []
    if not isinstance(raw[LISTED], list):
        raise RowError(f"{LISTED} must be a list of lists of token ids")
    for place, ids in enumerate(raw[LISTED]):
        name, text = f"completions[{place}]", texts[place] if isinstance(texts, list) and place < len(texts) else None
        one = {name: text, f"{name}_ids": ids}
        found.append(tuple(_ids(one, f"{name}_ids", tokenizer)))
        _check_text(text, ids, name, tokenizer)
    return found


def _listed(raw: Mapping[str, Any], encoded: Encoded, options: DataOptions) -> tuple[Row, Encoded]:
    """Reads a list whose answers are tuples of ids: as a pair where a loss of pairs takes two of them."""
    answers = selected(read_answers(raw), tuple(encoded.prompt), options)
    rest = {name: value for name, value in raw.items() if name not in (*LIST_FIELDS, *PAIR_FIELDS)}
    columns = rest | answers.columns(always=options.kind == "lists")
    names = list(answers.names)
    row = Row(raw.get("prompt") or "", {}, repeated=answers.repeated, left_out=answers.left_out, tied=answers.tied)
    if options.kind != "lists" and len(answers) == 2:
        [(better, worse)] = ordered_pairs(answers.scores, options.lists_as)
        names[better], names[worse] = "chosen", "rejected"
        row.columns = parse_columns(pair_columns(columns, better, worse), "pair", options)
    else:
        row.scores, row.columns = list(answers.scores), parse_columns(columns, "list", options)
    gold = encoded.completions
    sides = {name: Completion(list(ids), [True] * len(ids)) for name, ids in zip(names, answers.values, strict=True)}
    encoded.completions = {name: sides[name] for name in sorted(sides, key=_chosen_first)} | gold
    row.completions = {name: [] for name in encoded.completions}
    return row, encoded


def _chosen_first(name: str) -> bool:
    return name == "rejected"


def _ids(raw: Mapping[str, Any], field: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    value = raw.get(field)
    if value is None:
        raise RowError(f"{field} is missing beside the other ids")
    if not isinstance(value, list) or not value or not all(type(one) is int for one in value):
        raise RowError(f"{field} must be a list of token ids, at least one")
    # A model with more rows than its tokenizer has tokens may draw one that spells nothing: texts beside ids tell then.
    most = len(tokenizer) if raw.get(field.removesuffix("_ids")) is None else 2**31  # what tokens are kept in
    strange = next((one for one in value if not 0 <= one < most), None)
    if strange is not None:
        raise RowError(f"{field} has the id {strange}; the tokenizer has {len(tokenizer)} tokens")
    return value


def _mask(value: Any, field: str, length: int) -> list[bool]:
    if value is None:
        return [True] * length
    if not isinstance(value, list) or len(value) != length:
        raise RowError(f"{field} must be a list of {length} true or false, one for each id")
    return [bool(one) for one in value]


def _check_text(text: Any, ids: list[int], name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compares a text with what its tokens spell: those of another tokenizer spell another."""
    if not isinstance(text, str):
        return
    spelled = tokenizer.decode(ids, skip_special_tokens=True)
    if spelled.strip() != text.strip():
        raise RowError(
            f"{name}_ids spell {spelled[:_SHOWN]!r} with this tokenizer, and {name} says {text[:_SHOWN]!r}: "
            "another tokenizer wrote them"
        )
