"""From what a config or the command line says to the engine that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from alignlab.config import check_type

from .continuous import ContinuousEngine
from .engine import Engine, SeededEngine
from .options import SampleOptions
from .policy import Policy
from .server import ServerEngine, ServerOptions

ENGINES = ("transformers", "continuous")
Spec = str | Mapping[str, Any]


def build_engine(spec: Spec, policy: Policy, options: SampleOptions, served: str) -> Engine:
    """Returns an engine.

    Args:
        spec: "transformers", "continuous", an address up to ``/v1``, or ``{name: ADDRESS, model: NAME, ...}`` with the
            fields of ``ServerOptions``.
        served: the model's name at an address, where the spec gives none.

    Raises:
        ValueError: an unknown engine or option.
    """
    name, told = (spec, dict[str, Any]()) if isinstance(spec, str) else (str(spec.get("name")), dict(spec))
    told.pop("name", None)
    check_engine(spec)
    if name == "transformers":
        return SeededEngine(policy, options)
    if name == "continuous":
        return ContinuousEngine(policy, options)
    try:
        return ServerEngine(name, ServerOptions(**{"model": served, **told}), policy, options)
    except ValueError as error:
        raise ValueError(f"engine.{error}") from error


def check_engine(spec: Spec) -> None:
    """Raises a ValueError for an engine that there is not, an option that it does not have, or one of another type."""
    name, told = (spec, {}) if isinstance(spec, str) else (str(spec.get("name")), {**spec, "name": ""})
    known = {one.name for one in fields(ServerOptions)} if name.startswith(("http://", "https://")) else set()
    if not known and name not in ENGINES:
        near = get_close_matches(name, ENGINES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"engine: expected {', '.join(ENGINES)} or an address http://.../v1, found {name!r}{hint}")
    for key in told:
        if key not in known | {"name"}:
            raise ValueError(
                f"engine.{key}: unknown option of {name}; allowed are {', '.join(sorted(known)) or 'none'}"
            )
        if key in known:
            check_type(f"engine.{key}", told[key], get_type_hints(ServerOptions)[key])
