"""Judges of answers against a reference completion: a function of one's own, a reward model, or an endpoint."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from numbers import Real
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from .config_parser import readable_type, unknown_key

Prompt = str | list[dict[str, Any]]  # as the data has it: text, or messages

DISAGREE = "the orders disagree"
_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")


@dataclass(frozen=True)
class Comparison:
    """An answer to a prompt, and the completion that it is held against."""

    prompt: Prompt
    answer: str
    reference: str


@dataclass(frozen=True)
class Verdict:
    """What a judge says.

    Attributes:
        outcome: 1 the answer won, 1/2 a tie, 0 the reference won; None: it was not judged, ``note`` says why.
        reward, reference_reward: scores of both, of judges that give them.
        note: a word on it.
    """

    outcome: float | None
    reward: float | None = None
    reference_reward: float | None = None
    note: str = ""


class Judge:
    """Judges comparisons; ``description`` names it in results and holds no secret."""

    description: str

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Returns one verdict for each comparison, in order."""
        raise NotImplementedError

    def usage(self) -> dict[str, Any]:
        """Returns what judging has cost so far, where it costs anything."""
        return {}


class FunctionJudge(Judge):
    """A Python function: ``reward(prompt, completion) -> float``, or ``compare(prompt, one, other) -> float``.

    A function of two arguments is a reward, and the higher reward wins. A function of three returns 1 if ``one`` is
    better, 0 if ``other`` is, 1/2 for a tie; it is asked in both orders, and disagreement is a tie. ``prompt`` is text
    or messages, as the data has it.

    Raises:
        ValueError: the function takes another number of arguments.
    """

    def __init__(self, function: Callable[..., float], description: str | None = None) -> None:
        self.function = function
        self.description = description or str(getattr(function, "__name__", type(function).__name__))
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(function).parameters.values()
        needed = [one for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty]
        if len(needed) not in (2, 3):
            raise ValueError(
                f"judge: {self.description} takes {len(needed)} arguments; allowed are (prompt, completion), a reward, "
                "and (prompt, one, other), a comparison"
            )
        self.compares = len(needed) == 3

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Returns the function's verdicts."""
        return [self._compare(one) if self.compares else self._rewards(one) for one in comparisons]

    def _rewards(self, one: Comparison) -> Verdict:
        rewards = [self._number(one.prompt, text) for text in (one.answer, one.reference)]
        return by_rewards(*rewards)

    def _compare(self, one: Comparison) -> Verdict:
        first = self._number(one.prompt, one.answer, one.reference)
        second = self._number(one.prompt, one.reference, one.answer)
        for value in (first, second):
            if not 0 <= value <= 1:
                raise ValueError(f"judge: {self.description} returned {value}; a comparison returns 0 to 1")
        return both_orders(first, 1 - second)

    def _number(self, *words: Any) -> float:
        value = self.function(*words)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"judge: {self.description} returned {value!r}; expected a finite number")
        return float(value)


class RewardModel(Judge):
    """A sequence classifier with one output: the completion with the higher reward wins.

    Messages go through its chat template where it has one; other prompts are put right before the completion.

    Args:
        path: folder or hub id. batch_size: texts a forward. max_length: tokens, cut on the left.
        dtype: of the weights; "auto" as they were saved.
    """

    def __init__(self, path: str, batch_size: int = 8, max_length: int = 2048, dtype: str = "auto") -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from .models import pad_token_id, torch_dtype, unsharded

        self.description = f"reward model {path}"
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right", truncation_side="left")
        with unsharded():
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch_dtype(dtype))
        if model.config.num_labels != 1:
            raise ValueError(f"judge: {path} has {model.config.num_labels} outputs; a reward model has one")
        self.pad = pad_token_id(self.tokenizer)
        model.config.pad_token_id = self.pad  # it reads the reward at the last token that is not padding
        self.model, self.batch_size, self.max_length = model.eval().requires_grad_(False), batch_size, max_length

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Returns verdicts by the rewards of both texts."""
        texts = [(one.prompt, text) for one in comparisons for text in (one.answer, one.reference)]
        rewards = self.rewards(texts)
        return [by_rewards(rewards[2 * n], rewards[2 * n + 1]) for n in range(len(comparisons))]

    def rewards(self, texts: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Returns the reward of each completion of a prompt."""
        import torch

        device = "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
        self.model.to(device)
        found: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            rows = [self._ids(*text) for text in texts[start : start + self.batch_size]]
            width = max(map(len, rows))
            ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
            with torch.no_grad():
                found += self._last(ids, mask)
        return found

    def _last(self, ids: Any, mask: Any) -> list[float]:
        """Returns rewards at each row's last token, also where the pad token stands in the text itself."""
        import torch

        head = getattr(self.model, "score", None)
        if head is None:  # an encoder: it pools as it was made to
            logits: list[float] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
            return logits
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(-1) - 1]
        rewards: list[float] = head(last)[:, 0].float().tolist()
        return rewards

    def _ids(self, prompt: Prompt, completion: str) -> list[int]:
        if isinstance(prompt, list) and self.tokenizer.chat_template is not None:
            turns = [*prompt, {"role": "assistant", "content": completion}]
            ids: list[int] = self.tokenizer.apply_chat_template(turns, return_dict=False)
            return ids[-self.max_length :]
        whole: list[int] = self.tokenizer(prompt_text(prompt) + completion)["input_ids"]
        return whole[-self.max_length :]


def by_rewards(reward: float, reference: float) -> Verdict:
    """Returns the verdict of the higher reward."""
    return Verdict(0.5 if reward == reference else float(reward > reference), reward, reference)


def both_orders(first: float, second: float) -> Verdict:
    """Returns the verdict of one comparison asked in both orders, as the answer's outcome each time."""
    one, other = (_decided(value) for value in (first, second))
    if one == other:
        return Verdict(one)
    return Verdict(0.5, note=DISAGREE)


def _decided(value: float) -> float:
    return 0.5 if value == 0.5 else float(value > 0.5)


def prompt_text(prompt: Prompt) -> str:
    """Returns a prompt as text: messages become paragraphs that open with their role."""
    if isinstance(prompt, str):
        return prompt
    return "".join(f"{turn.get('role', '')}: {_content(turn.get('content'))}\n\n" for turn in prompt)


def _content(content: Any) -> str:
    if isinstance(content, list):  # parts, of which only text can be shown
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")


def build_judge(spec: str | Mapping[str, Any]) -> Judge:
    """Returns the judge that a config or the command line names.

    ``path/to/file.py:function``, a folder or hub id of a reward model, or the address of an OpenAI-compatible endpoint;
    with options as ``{name: ..., ...}``, which are the arguments of ``RewardModel`` or of ``judge_endpoint.Endpoint``.

    Raises:
        ValueError: an unknown option, or a function that cannot be found.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"judge.name: expected file.py:function, a model's path or an address https://..., found {name!r}"
        )
    if name.startswith(("http://", "https://")):
        from .judge_endpoint import Endpoint

        return _made(Endpoint, name, options)
    match = _FUNCTION.fullmatch(name)
    if match is None:
        return _made(RewardModel, name, options)
    for key in options:
        raise ValueError(f"judge.{key}: a function takes no options here")
    return FunctionJudge(_function(Path(match["file"]), match["name"]), name)


def _made(kind: type[Any], name: str, options: dict[str, Any]) -> Judge:
    parameters = dict(list(inspect.signature(kind).parameters.items())[1:])
    for key in options:
        if key not in parameters:
            raise unknown_key(f"judge.{key}", parameters)
    missing = [key for key, one in parameters.items() if one.default is one.empty and key not in options]
    if missing:
        raise ValueError(f"judge.{missing[0]}: required for {name}, and not given")
    hints = get_type_hints(kind.__init__)
    for key, value in options.items():
        try:
            TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError as error:
            expected = readable_type(hints[key])
            raise ValueError(f"judge.{key}: expected {expected}, found {value!r}") from error
    judge: Judge = kind(name, **options)
    return judge


def _function(file: Path, name: str) -> Callable[..., float]:
    if not file.is_file():
        raise ValueError(f"judge.name: no file {file}")
    spec = util.spec_from_file_location(f"alignlab_judge_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"judge.name: {file} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"judge.name: {file} has no function {name!r}; found {', '.join(public) or 'none'}")
    function: Callable[..., float] = found
    return function
