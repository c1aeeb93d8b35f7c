"""`alignlab pair`: rows of judged answers to rows that can be trained on, and an account of every answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import orjson

from alignlab.answers import AnswerRow, Made, file_digest, made_beside, read_answers
from alignlab.checkpoints import whole_file

from .account import Account
from .options import PairOptions
from .prompt import Pair, PromptPairs


def pairs(answers: Iterable[AnswerRow], options: PairOptions, account: Account | None = None) -> Iterator[Pair]:
    """Yields rows of pairs, as the data room reads them.

    A pair has ``prompt``, ``chosen``, ``rejected`` as texts and, where they are known, the tokens of all three, which
    training then takes as they are; ``score_chosen``, ``score_rejected`` and ``margin``, their difference; ``group``;
    and under ``origin`` where it comes from.

    Args:
        account: gets what became of every answer.

    Raises:
        ValueError: the judge that is to decide is not in the file, or several are and none is named.
    """
    account = account if account is not None else Account()
    deciding = _Deciding()
    for row in answers:
        fates = ["" for _ in row.answers]
        one = PromptPairs(row, options, fates, account.dropped)
        deciding.check(row, one.judge)
        made = list(one.rows())
        account.prompts += 1
        account.answers += len(row.answers)
        account.pairs += len(made)
        account.fates.update(fates)
        yield from made


class _Deciding:
    """The judge whose scores decide, held to be one in the whole file: scales and margins of two do not compare."""

    def __init__(self) -> None:
        self.name, self.by = "", dict[str, str]()

    def check(self, row: AnswerRow, name: str) -> None:
        """Raises a ValueError where the scores of a row are another judge's than those before."""
        by = row.judges.get(name, {})
        if not name:
            return
        if self.name and name != self.name:
            raise ValueError(
                f"score: prompt {row.prompt_id} was scored by {name!r}, and those before by {self.name!r}; name the "
                "one that decides with --score"
            )
        if self.by and by and by != self.by:
            raise ValueError(
                f"score: the scores called {name!r} are of two judges: of {by['by']} for prompt {row.prompt_id}, and "
                f"of {self.by['by']} before; judge all of them by one"
            )
        self.name, self.by = name, by or self.by


def pair(answers: Path, output: Path, options: PairOptions, manifest: Path | None = None) -> Account:
    """Makes the pairs of a file of answers, whole or not at all; returns what became of every answer.

    Raises:
        ValueError: no pair is left, or ``output`` is there and was made of something else.
    """
    of = {"step": "pair", "answers": file_digest(answers), **asdict(options)}
    made = Made(manifest, of) if manifest is not None else made_beside(output, of)
    if made.is_done():
        found = made.account
        counts = {name: Counter(found[name]) for name in ("fates", "dropped")}
        return Account(found["prompts"], found["answers"], found["pairs"], **counts)
    if manifest is None and output.exists():
        why = "; ".join(made.others()[:3]) or "nothing says what it is"
        raise ValueError(f"--output: {output} is there ({why}); choose another file, or delete it")
    account = Account()
    with whole_file(output, lambda aside: made.announce(output, aside, account.values())) as file:
        for one in pairs(read_answers(answers), options, account):
            file.write(orjson.dumps(one) + b"\n")
        if not account.pairs:
            told = ", ".join(f"{meaning}: {count}" for _, meaning, count in account.rows())
            raise ValueError(f"{answers}: no pair is left of {account.answers} answers ({told})")
    return account
