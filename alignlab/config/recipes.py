"""The recipes that come with alignlab: whole runs of real models, and what the head of each says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

_FIELD = re.compile(r"# (\w+): +(\S.*)")
_CARDS = re.compile(r"(\d+) x (\d+(?:\.\d+)?) GB")


@dataclass(frozen=True)
class Recipe:
    """A recipe's file, and its head.

    Attributes:
        purpose: the first line. fields: what the head says under ``name:`` (data, cards, memory, score, run, differs).
    """

    path: Path
    purpose: str
    fields: dict[str, str]

    @property
    def name(self) -> str:
        """What commands call it."""
        return self.path.stem

    @property
    def cards(self) -> tuple[int, float] | None:
        """How many GPUs, and of how many GB each; None where the head does not say."""
        found = _CARDS.fullmatch(self.fields.get("cards", ""))
        return (int(found[1]), float(found[2])) if found else None


def shipped_configs() -> Path:
    """Returns the folder of the shipped configs; the recipes stand in ``recipes`` within it."""
    return Path(str(resources.files("alignlab.configs")))


def recipes() -> list[Recipe]:
    """Returns the shipped recipes by name."""
    return [read_recipe(path) for path in sorted((shipped_configs() / "recipes").glob("*.yaml"))]


def find_recipe(name: str) -> Recipe:
    """Returns the shipped recipe called ``name``, with or without ``.yaml``.

    Raises:
        ValueError: there is none; names those that there are.
    """
    for recipe in recipes():
        if recipe.name == name.removesuffix(".yaml"):
            return recipe
    raise ValueError(f"no recipe {name!r}; there are {', '.join(recipe.name for recipe in recipes())}")


def read_recipe(path: Path) -> Recipe:
    """Reads the head of a YAML file, the comments before its first key; any config may have one, a copy does."""
    purpose, fields, last = "", dict[str, str](), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ")
        if found := _FIELD.fullmatch(line):
            last, fields[found[1]] = found[1], found[2]
        elif last and line.startswith("#    "):  # goes on
            fields[last] += f" {text}"
        else:
            purpose, last = purpose or text, ""
    return Recipe(path, purpose, fields)
