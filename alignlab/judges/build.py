"""From a spec to the judge that it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from alignlab.config import check_type, unknown_key

from .endpoint import Endpoint, EndpointOptions
from .function import FunctionJudge, function_of
from .judge import Judge
from .reward_model import RewardModel, RewardOptions, check_reward_model

Options = TypeVar("Options", EndpointOptions, RewardOptions)
_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")


def build_judge(spec: str | Mapping[str, Any]) -> Judge:
    """Returns the judge that a config or the command line names.

    ``path/to/file.py:function``, a folder or hub id of a reward model, or the address of an OpenAI-compatible endpoint;
    with options as ``{name: ..., ...}``, which are the fields of ``RewardOptions`` or of ``EndpointOptions``.

    Raises:
        ValueError: an unknown option, or a function that cannot be found.
    """
    name, options = _named(spec)
    if _is_address(name) or _FUNCTION.fullmatch(name):
        return _built(name, options)
    return RewardModel(name, _options(RewardOptions, name, options))


def check_judge(spec: str | Mapping[str, Any]) -> None:
    """Refuses a judge that ``build_judge`` could not build, or that is no reward model; loads no weights, asks nobody.

    Raises:
        ValueError: as ``build_judge``.
    """
    name, options = _named(spec)
    if _is_address(name) or _FUNCTION.fullmatch(name):
        _built(name, options)
        return
    _options(RewardOptions, name, options)
    try:
        check_reward_model(name)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(("judge.", "judge:")) else f"judge: {told}") from error


def _named(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"judge.name: expected file.py:function, a model's path or an address https://..., found {name!r}"
        )
    return name, options


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _built(name: str, options: Mapping[str, Any]) -> Judge:
    """Returns an endpoint or a function, neither of which costs anything before it is asked."""
    if _is_address(name):
        checked = _options(EndpointOptions, name, options)
        try:
            return Endpoint(name, checked)
        except ValueError as error:  # it opens with the option's name
            raise ValueError(f"judge.{error}") from error
    for key in options:
        raise ValueError(f"judge.{key}: a function takes no options here")
    file, _, function = name.rpartition(":")
    return FunctionJudge(function_of(Path(file), function), name)


def _options(kind: type[Options], name: str, given: Mapping[str, Any]) -> Options:
    """Returns the options that a user wrote, checked: the fields of the dataclass are what may be said, and how."""
    hints = get_type_hints(kind)
    for key in given:
        if key not in hints:
            raise unknown_key(f"judge.{key}", hints)
    missing = [one.name for one in fields(kind) if one.default is MISSING and one.name not in given]
    if missing:
        raise ValueError(f"judge.{missing[0]}: required for {name}, and not given")
    for key, value in given.items():
        check_type(f"judge.{key}", value, hints[key])
    return kind(**given)
