"""The rows of an answers file: a line a prompt, with all its answers, their tokens, seeds and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from alignlab.checkpoints import whole_file

Prompt = str | list[dict[str, Any]]
Token = Annotated[int, Field(ge=0)]
Score = Annotated[float, Field(allow_inf_nan=False)]
_CLOSED = ConfigDict(extra="forbid")  # what nobody reads would be gone after the next judge


@dataclass(slots=True)
class Answer:
    """One answer to a prompt.

    Attributes:
        text: without special tokens. ids: its tokens, EOS among them; None where nobody said them.
        finished: whether it ended by itself. None: nobody said.
        logp: log-probability of ``ids`` under the model as it is (temperature 1, nothing cut off), in nats, rounded to
            four decimals; None where the tokens are not known, or nobody scored them.
        seed: what it was drawn with; None where an engine has none for each answer.
        scores: by the name of a judge; None where that judge did not judge it.
        passed: of code, whether it passes each of its prompt's ``tests``; None where it was not run.
    """

    text: str
    ids: list[Token] | None = None
    finished: bool | None = None
    logp: float | None = None
    seed: int | None = None
    scores: dict[str, Score | None] = field(default_factory=dict)
    passed: list[bool | None] | None = None
    __pydantic_config__ = _CLOSED


@dataclass(slots=True)
class AnswerRow:
    """A prompt with its answers.

    Attributes:
        prompt_id: of its content. prompt: text or messages, as the data has it. prompt_ids: its tokens.
        model: fingerprint of the model that answered, or its name at an address. engine: what ran it.
        round: of a loop; 1 for answers drawn once.
        answers: in the order of their seeds.
        human, human_ids: what a person answered, where the data has it.
        group: of the prompt, where the data has one.
        judges: of each name in ``scores``, ``by``: which judge that was, ``kind``: what its scores are, "reward" on a
            scale of its own, or "wins", shares of comparisons that were won.
        tests: that the model wrote for the prompt, which answers were run against.
    """

    prompt_id: str
    prompt: Prompt
    prompt_ids: list[Token]
    model: str
    engine: str
    round: int
    answers: list[Answer]
    human: str | None = None
    human_ids: list[Token] | None = None
    group: str | None = None
    judges: dict[str, dict[str, str]] = field(default_factory=dict)
    tests: list[Answer] = field(default_factory=list)
    __pydantic_config__ = _CLOSED


_ROW = TypeAdapter(AnswerRow)


def as_line(row: AnswerRow) -> bytes:
    """Returns a row as a line of JSON; what nobody said is left out, but for scores, where null says unjudged."""
    values = {key: value for key, value in asdict(row).items() if value is not None}
    values |= {name: [_told(one) for one in values[name]] for name in ("answers", "tests")}
    return (
        orjson.dumps({key: value for key, value in values.items() if key == "answers" or value not in ([], {})}) + b"\n"
    )


def _told(values: dict[str, Any]) -> dict[str, Any]:
    return {key: one for key, one in values.items() if one is not None}


def write_answers(path: Path, rows: Iterable[AnswerRow], before: Callable[[Path], None] | None = None) -> None:
    """Writes rows: the whole file, or what was there; ``before`` is called as ``checkpoints.whole_file`` says."""
    with whole_file(path, before) as file:
        file.writelines(map(as_line, rows))


def read_answers(path: str | Path) -> Iterator[AnswerRow]:
    """Yields the rows of an answers file.

    Raises:
        ValueError: there is no such file, or a line of it is no row of answers; names file, line and field.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file of answers; `alignlab sample` writes one")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _ROW.validate_python(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from error
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "the line"
                raise ValueError(f"{path}:{number}: {where}: {first['msg']}; is this a file of answers?") from error
