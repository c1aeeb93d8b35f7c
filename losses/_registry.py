"""The folder is the registry: finds, builds and describes losses by file name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from ._base import Batch, Loss, LossOutput, Needs, Totals
from ._names import AMBIGUOUS

Spec = str | Mapping[str, Any] | Loss
LossFunction = Callable[..., "Tensor | LossOutput"]


def names() -> list[str]:
    """Returns the name of every loss: the files of this folder that do not start with an underscore."""
    folder = sys.modules[__package__].__path__
    return sorted(module.name for module in pkgutil.iter_modules(folder) if not module.name.startswith("_"))


def build(spec: Spec, /, **options: Any) -> Loss:
    """Builds a loss from its name, from a mapping with ``name`` and options, or from a path to a user's own.

    ``build("dpo", beta=0.1)``; ``build({"name": "group_robust", "base": {"name": "ipo", "beta": 0.1}})``;
    ``build("path/to/mine.py:MyLoss", margin=0.3)`` takes a class or a plain function of that file. A ``Loss`` is
    returned as it is.

    Raises:
        ValueError: unknown name or option (with the nearest known ones), wrong type or range; the message starts with
            the dotted key, for example ``loss.base.beta``.
    """
    return _build(spec, options, "loss")


def from_function(function: LossFunction, /, needs: Needs | None = None, **options: Any) -> Loss:
    """Makes a loss of ``function(batch, **options)``, which returns ``[N]`` losses or a ``LossOutput``.

    ``needs`` may stand on the function itself, as ``function.needs``; without any it is given pairs and no reference.

    Raises:
        ValueError: an option is unknown, missing or of the wrong type.
    """
    declared = getattr(function, "needs", Needs()) if needs is None else needs
    return FunctionLoss(function, declared, _checked(function, options, "loss"))


def is_own(loss: Loss) -> bool:
    """True where a loss, or one that it is made of, was written outside of this package."""
    parts = [part for part in loss.modules() if isinstance(part, Loss)]
    return any(isinstance(one, FunctionLoss) or type(one).__module__.split(".")[0] != "alignlab" for one in parts)


class FunctionLoss(Loss):
    """A plain function as a loss; see ``from_function``."""

    def __init__(self, function: LossFunction, needs: Needs, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.function = function
        self.needs = needs
        self.options = dict(options)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        out = self.function(batch, **self.options)
        return out if isinstance(out, LossOutput) else LossOutput(out)


@dataclass(frozen=True)
class Description:
    """What ``alignlab losses`` shows of a loss.

    Attributes:
        name: its name in configs, which is its file name.
        summary: one line.
        formula, source, elsewhere, collision: as its docstring has them: what it computes, the paper, what other
            packages call it, and what else goes by its name.
        needs: what it must be given, with default options.
        defaults: option -> default; an option that must be given is not in there.
        aliases: other names.
    """

    name: str
    summary: str
    formula: str
    source: str
    elsewhere: str
    collision: str
    needs: Needs
    defaults: dict[str, Any]
    aliases: tuple[str, ...]


def describe(name: str) -> Description:
    """Describes the loss ``name`` of the folder. Raises ValueError if there is none."""
    if name not in names():
        raise ValueError(_unknown("loss", "loss", name, names()))
    cls = _class_of(name)
    parameters = _parameters(cls)
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    sections = _sections(inspect.getdoc(cls) or "")
    return Description(
        name=name,
        summary=(inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "),
        formula=sections.get("Formula", ""),
        source=sections.get("Source", ""),
        elsewhere=sections.get("Elsewhere", ""),
        collision=sections.get("Collision", ""),
        needs=cls().needs if len(defaults) == len(parameters) else cls.needs,
        defaults=defaults,
        aliases=tuple(_aliases(cls)),
    )


def _sections(doc: str) -> dict[str, str]:
    """Returns the paragraphs of a docstring that open with ``Word:``, by word, each on one line."""
    sections: dict[str, str] = {}
    word = ""
    for line in doc.splitlines():
        head, colon, rest = line.partition(":")
        if colon and head.isalpha() and head[0].isupper():
            word, sections[head] = head, rest.strip()
        elif not line.strip():
            word = ""
        elif word:
            sections[word] = f"{sections[word]} {line.strip()}".strip()
    return sections


# ---- from a spec to a loss ---------------------------------------------------------------------------------------


def _build(spec: Spec, options: Mapping[str, Any], where: str) -> Loss:
    if isinstance(spec, Loss):
        if options:
            raise ValueError(f"{where}: a loss that is built already takes no options, found {sorted(options)}")
        return spec
    if isinstance(spec, Mapping):
        if not isinstance(spec.get("name"), str):
            raise ValueError(f"{where}.name: a loss needs a name, found {spec.get('name')!r} in {dict(spec)}")
        given = {**spec, **options}
        return _build(given.pop("name"), given, where)
    if not isinstance(spec, str):
        raise ValueError(f"{where}: expected a name or a mapping with a name, found {spec!r}")
    target, preset = _target(spec, where)
    options = {**preset, **options}
    needs = getattr(target, "needs", Needs())
    if not isinstance(needs, Needs) and not isinstance(needs, property):
        raise ValueError(f"{where}.name: needs of {spec} must be a Needs(...), found {needs!r}")
    if not isinstance(target, type):
        return FunctionLoss(target, getattr(target, "needs", Needs()), _checked(target, options, where))
    arguments = _checked(target, options, where)
    try:
        return typing.cast(Loss, target(**arguments))
    except ValueError as error:  # a range check: its message starts with the option's name
        dotted = str(error).startswith(tuple(_parameters(target)))
        raise ValueError(f"{where}{'.' if dotted else ': '}{error}") from None


def _target(name: str, where: str) -> tuple[type[Loss] | LossFunction, Mapping[str, Any]]:
    """Returns the class or function that ``name`` stands for, and the options that an alias implies."""
    if ".py" in name:
        return _from_file(name, where), {}
    if name in names():
        return _class_of(name), {}
    aliases = {alias: known for known in names() for alias in _aliases(_class_of(known))}
    written = name.lower().replace("-", "_")  # rDPO, Dr-DPO
    if written in AMBIGUOUS and name not in aliases:
        raise ValueError(f"{where}.name: {name!r} names no loss here: {AMBIGUOUS[written]}")
    if name not in aliases:
        raise ValueError(_unknown(f"{where}.name", "loss", name, [*names(), *aliases]))
    cls = _class_of(aliases[name])
    preset = _aliases(cls)[name]
    shown = "".join(f", {key}: {value}" for key, value in preset.items())
    warnings.warn(f"{where}.name: {name!r} stands for {{name: {aliases[name]}{shown}}}", stacklevel=5)
    return cls, preset


def _class_of(name: str) -> type[Loss]:
    """Returns the one public loss that the file of ``name`` defines."""
    module = importlib.import_module(f".{name}", __package__)
    found = [cls for cls in _losses_in(module) if cls.__module__ == module.__name__]
    assert len(found) == 1, f"{module.__name__} must define exactly one public Loss, found {found}"
    return found[0]


def _aliases(cls: type[Loss]) -> Mapping[str, Mapping[str, Any]]:
    """Returns the aliases that ``cls`` itself declares: those of a parent class stand for the parent."""
    aliases: Mapping[str, Mapping[str, Any]] = vars(cls).get("aliases", {})
    return aliases


def _losses_in(module: ModuleType) -> list[type[Loss]]:
    public = [value for name, value in vars(module).items() if not name.startswith("_")]
    return [value for value in public if isinstance(value, type) and issubclass(value, Loss) and value is not Loss]


def _from_file(spec: str, where: str) -> type[Loss] | LossFunction:
    """Returns the class or function ``name`` of ``path/to/file.py:name``."""
    path_text, _, attribute = spec.rpartition(":")
    path = Path(path_text or attribute).expanduser()
    if not path_text or not path.suffix == ".py":
        raise ValueError(f"{where}.name: a loss of your own is written path/to/file.py:Name, found {spec!r}")
    if not path.is_file():
        raise ValueError(f"{where}.name: there is no file {path} (looked for {path.absolute()})")
    module = _load(path, where)
    found = getattr(module, attribute, None)
    if found is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ValueError(_unknown(f"{where}.name", f"name in {path}", attribute, public))
    if isinstance(found, type) and not issubclass(found, Loss):
        raise ValueError(f"{where}.name: {attribute} of {path} is a class, but no subclass of alignlab.losses.Loss")
    if not callable(found) or isinstance(found, Loss):
        raise ValueError(f"{where}.name: {attribute} of {path} is neither a class nor a function")
    return typing.cast("type[Loss] | LossFunction", found)


def _load(path: Path, where: str) -> ModuleType:
    module_name = f"alignlab_user_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script calls sys.exit, and is no loss
        del sys.modules[module_name]
        raise ValueError(f"{where}.name: {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


# ---- options -----------------------------------------------------------------------------------------------------


def _parameters(target: type[Loss] | LossFunction) -> dict[str, inspect.Parameter]:
    """Returns the options of a class (``self`` left out) or of a function (the batch left out)."""
    parameters = list(inspect.signature(_callable(target)).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _callable(target: type[Loss] | LossFunction) -> Callable[..., Any]:
    return target.__init__ if isinstance(target, type) else target  # type: ignore[misc]


def _checked(target: type[Loss] | LossFunction, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns ``options`` as ``target`` takes them, nested losses built; raises ValueError with the dotted key."""
    parameters = _parameters(target)
    hints = typing.get_type_hints(_callable(target))
    for key in options:
        if key not in parameters:
            raise ValueError(_unknown(f"{where}.{key}", "option", key, parameters))
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise ValueError(f"{where}.{missing[0]}: this option has no default and must be given")
    return {key: _value(value, hints.get(key, Any), f"{where}.{key}") for key, value in options.items()}


def _value(value: Any, annotation: Any, where: str) -> Any:
    """Returns ``value`` checked against ``annotation``: strictly, but an int is a float, and a list a tuple."""
    if _mentions_loss(annotation):
        value = _nested(value, where)
    adapter = TypeAdapter[Any](annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        if isinstance(value, list):
            try:
                return adapter.validate_python(tuple(value))
            except ValidationError:
                pass
        problem = error.errors()[0]
        raise ValueError(f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}, found {value!r}") from None


def _mentions_loss(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, Loss):
        return True
    return any(_mentions_loss(argument) for argument in typing.get_args(annotation))


def _nested(value: Any, where: str) -> Any:
    """Builds the losses in a value of a parameter that takes a loss or a list of losses."""
    if isinstance(value, (list, tuple)):
        return [_nested(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return _build(value, {}, where) if isinstance(value, (str, Mapping)) else value


def _unknown(where: str, kind: str, found: str, known: typing.Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(found, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known) or 'none'}"
    return f"{where}: there is no {kind} {found!r}; {hint}"
