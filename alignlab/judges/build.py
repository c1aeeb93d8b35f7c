"""From a spec to the judge that it names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from alignlab.config import readable_type, unknown_key

from .endpoint import Endpoint
from .function import FunctionJudge, function_of
from .judge import Judge
from .reward_model import RewardModel

_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")


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
        return _made(Endpoint, name, options)
    match = _FUNCTION.fullmatch(name)
    if match is None:
        return _made(RewardModel, name, options)
    for key in options:
        raise ValueError(f"judge.{key}: a function takes no options here")
    return FunctionJudge(function_of(Path(match["file"]), match["name"]), name)


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
