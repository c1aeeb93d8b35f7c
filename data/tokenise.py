"""Text to token ids and masks, and the truncation of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .control import CUT
from .lists import Answers, in_single, merge
from .options import PROMPT_CUT_SHARE, DataOptions
from .schema import Row, RowError
from .template import Rendering
from .words import words_of

Ids = list[int]


@dataclass(slots=True)
class Completion:
    """Token ids of a completion, and for each whether it counts in the loss."""

    ids: Ids
    mask: list[bool]


@dataclass(slots=True)
class Encoded:
    """A row as token ids.

    Attributes:
        prompt: at least one token.
        completions: by name; each has at least one token that counts.
        cut_prompt: whether truncation touched the prompt.
        cut_completions: how many completions it touched.
    """

    prompt: Ids
    completions: dict[str, Completion] = field(default_factory=dict)
    cut_prompt: bool = False
    cut_completions: int = 0


class Tokeniser:
    """Tokenises prompts and completions apart, so that no token straddles the two.

    At inference a model is given the tokens of the prompt and writes its own; tokens that merge the prompt's end with
    the completion's start would train it on prompts it never sees. The tokenizer's own BOS goes once in front of a
    standard prompt and EOS once behind a standard completion; a chat template writes both itself.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, add_eos: bool = True) -> None:
        self.tokenizer = tokenizer
        self.direct = _is_plain(tokenizer)
        self.words = words_of(tokenizer.backend_tokenizer) if self.direct else None
        self.eos: int | None = tokenizer.eos_token_id if add_eos else None
        # A word that the tokenizer knows shows what it writes around every text.
        word = next((word for word in ("a", "the", "1", "?") if self._ids([word])[0]), "")
        plain: Ids = self._ids([word])[0]
        special: Ids = tokenizer(word)["input_ids"]
        starts = [at for at in range(len(special)) if special[at : at + len(plain)] == plain]
        self.bos: Ids = special[: starts[0]] if starts else []
        # Some tokenizers write a space before every text; a completion is no new text, so a newline goes in front of
        # it while it is tokenised, and its tokens are taken off again.
        opening = "".join(map(str, tokenizer.convert_ids_to_tokens(plain[:1])))
        self.anchor = "\n" if opening.startswith(("▁", "Ġ")) else ""
        self.anchor_ids: Ids = self._ids([self.anchor])[0] if self.anchor else []

    def _ids(self, texts: list[str]) -> list[Ids]:
        """Tokenises texts, each once; what stands on either side of a cut is tokenised apart."""
        if len(unique := dict.fromkeys(texts)) < len(texts):
            known = dict(zip(unique, self._ids(list(unique)), strict=True))
            return [known[text] for text in texts]
        if not any(CUT in text for text in texts):
            return self._whole_ids(texts)
        parts = [text.split(CUT) for text in texts]
        found = self._whole_ids([first for first, *_ in parts])
        for ids, (_, *rest) in zip(found, parts, strict=True):
            for piece in self._continuations(rest):
                ids += piece
        return found

    def _whole_ids(self, texts: list[str]) -> list[Ids]:
        if not texts:
            return []
        if self.direct:  # the same ids without offsets, masks and warnings, which nobody reads: a quarter less time
            self.tokenizer("", add_special_tokens=False)  # forgets what a call before may have set (padding, ...)
            if self.words is not None:
                return self.words(texts)
            return [one.ids for one in self.tokenizer.backend_tokenizer.encode_batch_fast(texts, False, False)]
        ids: list[Ids] = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )["input_ids"]
        return ids

    def _continuations(self, texts: list[str]) -> list[Ids]:
        if not texts:
            return []
        if not self.anchor:
            return self._ids(texts)
        length = len(self.anchor_ids)
        anchored = self._ids([self.anchor + text for text in texts])
        return [
            ids[length:] if ids[:length] == self.anchor_ids else self._ids([text])[0]
            for ids, text in zip(anchored, texts, strict=True)
        ]

    def encode(self, renderings: Sequence[Rendering]) -> list[Encoded]:
        """Tokenises a batch of rows, each text of it once."""
        prompts = self._ids([rendering.prompt for rendering in renderings])
        segments = [
            segment for rendering in renderings for value in rendering.completions.values() for segment in value
        ]
        pieces = iter(self._continuations([text for text, _ in segments]))
        encoded = []
        for rendering, prompt in zip(renderings, prompts, strict=True):  # equal texts share their ids: never changed
            if rendering.special_tokens and prompt[: len(self.bos)] != self.bos:
                prompt = self.bos + prompt
            row = Encoded(prompt)
            for name, value in rendering.completions.items():
                row.completions[name] = self._completion(value, pieces, rendering.special_tokens)
            encoded.append(row)
        return encoded

    def _completion(self, segments: list[tuple[str, bool]], pieces: object, add_eos: bool) -> Completion:
        ids: Ids = []
        mask: list[bool] = []
        for _, counts in segments:
            piece = next(pieces)  # type: ignore[call-overload]
            ids += piece
            mask += [counts] * len(piece)
        ends_with_assistant = bool(mask) and mask[-1]
        if add_eos and self.eos is not None and ends_with_assistant and ids[-1] != self.eos:
            ids.append(self.eos)
            mask.append(True)
        return Completion(ids, mask)


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True where a call of a tokenizer is a call of its Rust backend, and nothing that its class adds."""
    kind = type(tokenizer)
    own = kind.__call__ is not PreTrainedTokenizerBase.__call__ or not issubclass(kind, PreTrainedTokenizerFast)
    if own or kind._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return False
    return hasattr(tokenizer.backend_tokenizer, "encode_batch_fast")


def truncate(row: Encoded, options: DataOptions, bos: Ids) -> Encoded:
    """Cuts a row to ``max_length`` tokens; all its completions keep the same prompt tokens.

    keep_start: the ends of the completions are cut. Where the prompt alone would leave a completion fewer tokens than
    ``min(its length, max_length // 8)`` (at least one), the prompt's beginning is cut until it does not.
    keep_end: the prompt's beginning is cut (at least one token of it stays), then the completions' beginnings.
    A BOS at the prompt's start survives the cut.

    Raises:
        RowError: no token that counts is left, or chosen and rejected of a pair are equal.
    """
    limit = options.max_length
    longest = max(len(completion.ids) for completion in row.completions.values())
    if limit is not None and len(row.prompt) + longest > limit:
        keep_end = options.truncation_mode == "keep_end"
        reserved = longest if keep_end else min(longest, max(1, limit // PROMPT_CUT_SHARE))
        kept = min(len(row.prompt), max(1, limit - reserved))
        if kept < len(row.prompt):
            row.prompt = _cut_start(row.prompt, kept, bos)
            row.cut_prompt = True
        room = limit - kept
        for completion in row.completions.values():
            if len(completion.ids) > room:
                part = slice(len(completion.ids) - room, None) if keep_end else slice(room)
                completion.ids, completion.mask = completion.ids[part], completion.mask[part]
                row.cut_completions += 1
    check(row)
    return row


def merge_equal(row: Row, encoded: Encoded, options: DataOptions) -> None:
    """Makes answers of a list one that have equal tokens, as ``read_answers`` does those of equal text.

    Raises:
        RowError: fewer than two are left, or all are equally good.
    """
    if row.scores is None:
        return
    names = [name for name in encoded.completions if name != "gold"]
    ids = [encoded.completions[name].ids for name in names]
    same = [ids.index(one) for one in ids]
    if same == list(range(len(ids))):
        return
    answers = merge(Answers(names, ids, row.scores, rewards=row.columns.get("rewards")), same)
    cut = " after truncation" if encoded.cut_prompt or encoded.cut_completions else ""
    if len(answers) < 2:
        raise RowError(f"all {len(ids)} completions have equal tokens{cut}")
    if min(answers.scores) == max(answers.scores):
        raise RowError(f"all {len(answers)} completions are equally good once those of equal tokens{cut} are one")
    if options.kind == "lists":
        answers = in_single(answers)
    row.scores = list(answers.scores)
    row.repeated, row.tied = row.repeated + answers.repeated, row.tied + answers.tied
    row.columns |= {name: value for name, value in answers.columns().items() if name in row.columns}
    for name in set(names) - set(answers.names):
        del encoded.completions[name]


def _cut_start(prompt: Ids, kept: int, bos: Ids) -> Ids:
    if bos and prompt[: len(bos)] == bos and kept > len(bos):
        return bos + prompt[len(prompt) - kept + len(bos) :]
    return prompt[len(prompt) - kept :]


def check(row: Encoded) -> None:
    """Raises ``RowError`` where a row has nothing to train on."""
    cut = " after truncation" if row.cut_prompt or row.cut_completions else ""
    if not row.prompt:
        raise RowError("the prompt has no token")
    for name, completion in row.completions.items():
        if not any(completion.mask):
            raise RowError(f"{name} has no completion token left{cut}")
    pair = [row.completions[name].ids for name in ("chosen", "rejected") if name in row.completions]
    if len(pair) == 2 and pair[0] == pair[1]:
        raise RowError(f"chosen and rejected have equal tokens{cut}")
