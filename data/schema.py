"""Canonical rows, the errors that name them, and the report of what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Message = dict[str, Any]
Segment = tuple[str, bool]
"""A stretch of text, and whether its tokens count in the loss."""

Kind = Literal["pairs", "labelled", "lists"]
"""What rows are, and what a loss may want of them."""

SHOWN_BAD_ROWS = 20


class RowError(ValueError):
    """Why one row cannot be trained on; whoever knows the row's file and line adds them."""


def check_characters(texts: Iterable[str]) -> None:
    """JSON can spell half a character ("\\ud83d"), which no tokenizer and no table can hold.

    Raises:
        RowError: a text has one.
    """
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise RowError("not UTF-8: the text has half of a surrogate pair") from error


@dataclass(slots=True)
class Broken:
    """A row that could not even be read.

    Attributes:
        reason: why.
        raw: what stood there, as text.
    """

    reason: str
    raw: str


@dataclass(slots=True)
class Row:
    """A row in its one canonical form.

    Attributes:
        prompt: text (standard rows) or messages (conversational rows).
        completions: ``chosen``, ``rejected`` and perhaps ``gold`` of a pair, or ``completion``, or the answers of a
            list by their place in the row. Standard rows hold segments of text, conversational rows messages.
        label: of a labelled row; None for a pair.
        scores: of a list, how good each completion is, in their order; None for others.
        repeated, left_out: answers of a list that became one with another; that the run does not take.
        tied: answers of a list with a score that float32 does not tell from another's.
        tools: tools for the chat template.
        template_kwargs: the row's own arguments to the chat template.
        columns: optional columns: group, weight, margin, scores, rewards.
        read_as: the public set that the row was recognised as; empty for our own forms.
        unread: fields of the row that nothing reads.
        lent_group: whether the group is the public set's own, and not the user's: then other rows may lack one.
    """

    prompt: str | list[Message]
    completions: dict[str, list[Segment] | list[Message]]
    label: bool | None = None
    scores: list[float] | None = None
    repeated: int = 0
    left_out: int = 0
    tied: int = 0
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    read_as: str = ""
    unread: tuple[str, ...] = ()
    lent_group: bool = False

    @property
    def is_pair(self) -> bool:
        """Whether the row holds a chosen and a rejected completion."""
        return self.scores is None and "chosen" in self.completions

    @property
    def is_conversational(self) -> bool:
        """Whether the row is made of messages and goes through the chat template."""
        return isinstance(self.prompt, list)


@dataclass(frozen=True)
class BadRow:
    """One row that is not trained on.

    Attributes:
        source: file and line, or the index of the row.
        reason: what is wrong with it.
    """

    source: str
    reason: str


@dataclass
class SourceReport:
    """What became of one source of a mixture.

    Attributes:
        name: the path, hub id or "rows".
        weight: passes over the source per epoch.
        rows_read, rows_kept, rows_rejected: ``read == kept + rejected``.
        rows_used: rows of one epoch, after the weight (kept when the weight is 1).
    """

    name: str
    weight: float = 1.0
    rows_read: int = 0
    rows_kept: int = 0
    rows_rejected: int = 0
    rows_used: int = 0


@dataclass
class DataReport:
    """Where every row went.

    Attributes:
        sources: one entry for each source of the mixture; the row counts add up over them.
        bad_rows: the first twenty rows that were rejected.
        rows_truncated: rows of which anything was cut; prompts_truncated and completions_truncated say what.
        duplicates: rows whose tokens all equal those of an earlier row (kept, not removed).
        prompts_ending_in_space: standard rows whose prompt ends in whitespace, after which tokens may not be
            those the model would have written itself.
        prompts_repeated: standard rows whose completions all open with the whole prompt.
        completions_repeated: answers of lists that equal another of their list and became one with it.
        completions_left_out: answers of lists that are not used, by ``lists_as`` and ``max_completions``.
        completions_tied: answers of lists that float32 makes as good as another of their list.
        control_tokens_split, control_tokens_kept: rows whose text spells control tokens, which were read as text, or as
            the tokens that they spell.
        reward_names: the order of the named objectives, empty where rewards are lists.
        notes: sentences a user should read once.
        fingerprint: 32 hex digits over the content of all rows in order.
    """

    sources: list[SourceReport] = field(default_factory=list)
    bad_rows: list[BadRow] = field(default_factory=list)
    rows_truncated: int = 0
    prompts_truncated: int = 0
    completions_truncated: int = 0
    duplicates: int = 0
    prompts_ending_in_space: int = 0
    prompts_repeated: int = 0
    completions_repeated: int = 0
    completions_left_out: int = 0
    completions_tied: int = 0
    control_tokens_split: int = 0
    control_tokens_kept: int = 0
    reward_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""

    @property
    def rows_read(self) -> int:
        """Rows found in all sources."""
        return sum(source.rows_read for source in self.sources)

    @property
    def rows_kept(self) -> int:
        """Rows that can be trained on, before a mixture's weights."""
        return sum(source.rows_kept for source in self.sources)

    @property
    def rows_rejected(self) -> int:
        """Bad rows."""
        return sum(source.rows_rejected for source in self.sources)

    @property
    def rows_used(self) -> int:
        """Rows of one epoch, after a mixture's weights and before pairs are split."""
        return sum(source.rows_used for source in self.sources)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DataReport:
        """Returns a report that was written as JSON by its fields; others are left out."""
        known = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        known["sources"] = [SourceReport(**one) for one in content["sources"]]
        known["bad_rows"] = [BadRow(**one) for one in content["bad_rows"]]
        return cls(**{**known, "reward_names": tuple(content["reward_names"])})

    def note(self, sentence: str) -> None:
        """Adds a sentence, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def bad_rows_text(self) -> str:
        """Names the first twenty bad rows and counts all."""
        lines = [f"{self.rows_rejected} of {self.rows_read} rows are bad:"]
        lines += [f"  {row.source}: {row.reason}" for row in self.bad_rows]
        if self.rows_rejected > len(self.bad_rows):
            lines.append(f"  ... and {self.rows_rejected - len(self.bad_rows)} more")
        return "\n".join(lines)

    def summary(self) -> str:
        """Says in a few lines where every row went."""
        lines = [f"{self.rows_read} rows read, {self.rows_kept} kept, {self.rows_rejected} rejected"]
        if self.rows_used != self.rows_kept:
            lines.append(f"{self.rows_used} rows an epoch after the weights of the mixture")
        if self.rows_truncated:
            lines.append(
                f"{self.rows_truncated} rows truncated ({self.prompts_truncated} prompts, "
                f"{self.completions_truncated} completions)"
            )
        if self.duplicates:
            lines.append(f"{self.duplicates} rows repeat an earlier row (kept)")
        return "\n".join(lines + self.notes)
