"""`alignlab judge`: every answer of a file scored by any judges, shard by shard; unjudged is null, never a number."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.answers import AnswerRow, Made, Shards, alone_with, array_part, file_digest, made_beside, read_answers
from alignlab.checkpoints import write_whole
from alignlab.runtime import bar, from_main, is_main, rank_and_ranks, shown_as, wait_for_all

from .build import build_judge
from .judge import Judge

logger = logging.getLogger(__name__)
SHARD = 16  # prompts: what a kill loses
Spec = str | Mapping[str, Any]


def judge_answers(
    answers: Path,
    judges: Mapping[str, Spec | Judge],
    *,
    output: Path | None = None,
    manifest: Path | None = None,
    again: bool = False,
) -> bool:
    """Adds the scores of judges to a file of answers; returns True once the file is whole.

    Scores that are there stay; of a judge whose name has scores already only what is missing is judged. Ranks and jobs
    of an array share the prompts. What judging cost stands in ``OUTPUT.cost.json``, added up over kills.

    Args:
        judges: by the name that their scores get, as ``build_judge`` takes them, or built.
        output: another file; by default the scores are written into ``answers``.
        manifest: where it is said what ``output`` was made of; by default beside it.
        again: ask again about answers that a judge of that name left unjudged.

    Raises:
        ValueError: no judge; scores of that name are another judge's; nothing at all could be judged.
    """
    if not judges:
        raise ValueError("--judge: by whom? a file.py:function, a reward model or an address")
    built = {name: one if isinstance(one, Judge) else build_judge(one) for name, one in judges.items()}
    identities = {name: {"by": judge.identity(), "kind": judge.kind} for name, judge in built.items()}
    target = output or answers

    def begin() -> tuple[dict[str, Any], int] | None:
        """Says what the work is, and of how many rows; None where nothing is to be done."""
        with alone_with(target):  # nobody completes the file between its reading and the opening of its shards
            rows = list(read_answers(answers))
            _check_same(rows, identities, answers)
            work: dict[str, Any] = {"step": "judge", "answers": file_digest(answers), "judges": identities}
            work |= {"again": True} if again else {}
            if output is None and not _wanted(rows, built, again):
                shards(work, len(rows)).close()
                _seal(answers, rows)
                return None
            shards(work, len(rows)).open()
            return work, len(rows)

    def shards(work: dict[str, Any], count: int) -> Shards:
        made = Made(manifest, work) if manifest is not None else made_beside(target, work)
        return Shards(made, target, SHARD, count, in_place=output is None)

    begun = from_main(begin)
    if begun is None:
        return True
    _judge(built, identities, answers, shards(*begun), again)
    wait_for_all()
    return from_main(lambda: _assemble(shards(*begun), answers))


def _judge(
    judges: Mapping[str, Judge], identities: Mapping[str, Any], answers: Path, shards: Shards, again: bool
) -> None:
    """Judges this process's part of what is missing, a shard at a time."""
    rows = list(read_answers(answers))
    (rank, ranks), (job, jobs) = rank_and_ranks(), array_part()
    missing = shards.missing(job * ranks + rank, jobs * ranks)
    costs = _Costs(shards, f"{job}.{rank}")
    with bar("judging", sum(map(len, missing)), "prompts", shown_as() if is_main() else "none") as shown:
        for numbers in missing:
            some = [rows[number] for number in numbers]
            for row in some:
                for name, judge in judges.items():
                    _score(row, name, judge, again)
                    row.judges[name] = identities[name]
            _check_any(judges, some)
            shards.write(numbers, some)
            costs.write({name: judge.usage() for name, judge in judges.items()})
            shown.update(len(numbers))


def _score(row: AnswerRow, name: str, judge: Judge, again: bool) -> None:
    """Gives the answers of one prompt their scores; equal texts are judged once."""
    if not _unscored(row, name, judge, again):
        return
    known = row.answers
    if judge.kind == "wins":  # a share of comparisons with all the others
        for one, score in zip(known, judge.scores(row.prompt, [one.text for one in known]), strict=True):
            one.scores[name] = score
        return
    texts = list(dict.fromkeys(one.text for one in known if one.scores.get(name) is None))
    scores = dict(zip(texts, judge.scores(row.prompt, texts), strict=True))
    for one in known:
        if one.scores.get(name) is None:
            one.scores[name] = scores[one.text]


def _unscored(row: AnswerRow, name: str, judge: Judge, again: bool) -> bool:
    return any(name not in one.scores or (again and one.scores[name] is None) for one in row.answers)


def _wanted(rows: Sequence[AnswerRow], judges: Mapping[str, Judge], again: bool) -> bool:
    return any(_unscored(row, name, judge, again) for row in rows for name, judge in judges.items())


def _check_same(rows: Sequence[AnswerRow], identities: Mapping[str, dict[str, str]], path: Path) -> None:
    for row in rows:
        for name, identity in identities.items():
            if name not in row.judges and any(name in one.scores for one in row.answers):
                raise ValueError(
                    f"{path}: prompt {row.prompt_id} has scores called {name!r}, and nothing says whose they are; "
                    "choose another name"
                )
            found = row.judges.get(name, identity)
            if found != identity:
                raise ValueError(
                    f"{path}: the scores called {name!r} are another judge's ({found['by']}, and not "
                    f"{identity['by']}); choose another name"
                )


def _check_any(judges: Mapping[str, Judge], rows: Sequence[AnswerRow]) -> None:
    """Stops where a whole shard was left unjudged: nothing would come of judging the rest."""
    for name, judge in judges.items():
        scores = [one.scores.get(name) for row in rows for one in row.answers]
        if scores and all(one is None for one in scores):
            reason = judge.usage().get("first_failure") or judge.usage().get("stopped") or "it says nothing of why"
            raise ValueError(f"--judge: {judge.description} judged none of {len(scores)} answers: {reason}")


def _assemble(shards: Shards, answers: Path) -> bool:
    """Puts the file together, if this process is the last, and says how much of a completed one is judged."""
    with alone_with(shards.output):
        whole = shards.assemble({})
        if whole and shards.in_place:
            _seal(answers, list(read_answers(answers)))
    return whole


def _seal(answers: Path, rows: Sequence[AnswerRow]) -> None:
    """Brings the manifest of a file that was completed in place up to date."""
    beside = made_beside(answers, {})
    found = beside.read()
    if found:
        Made(beside.manifest, found["of"]).finish([answers], {**found.get("account", {}), "judged": judged(rows)})
    for name, counts in judged(rows).items():
        logger.info("%s: %d answers judged, %d unjudged", name, counts["judged"], counts["unjudged"])


def judged(rows: Sequence[AnswerRow]) -> dict[str, dict[str, int]]:
    """Returns how many answers each judge scored, and how many it left unjudged."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for one in row.answers:
            for name, score in one.scores.items():
                counts = found.setdefault(name, {"judged": 0, "unjudged": 0})
                counts["unjudged" if score is None else "judged"] += 1
    return found


class _Costs:
    """What judging cost, added up over processes and kills: a file beside the answers, of judges that say it."""

    def __init__(self, shards: Shards, process: str) -> None:
        self.path = shards.output.with_name(f"{shards.output.name}.cost.json")
        self.answers, self.process = shards.output, process
        self.before = self._read().get(process, {})

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def write(self, usage: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes what this process has spent, over what it had spent before it was killed."""
        told = {name: dict(one) for name, one in usage.items() if one}
        if not told:
            return
        for name, one in told.items():
            for key, value in self.before.get(name, {}).items():
                if isinstance(value, (int, float)) and isinstance(one.get(key, 0), (int, float)):
                    one[key] = one.get(key, 0) + value
        with alone_with(self.answers):
            write_whole(self.path, json.dumps({**self._read(), self.process: told}, indent=1) + "\n")
