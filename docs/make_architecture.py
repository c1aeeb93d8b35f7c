"""Writes docs/architecture.md from the docstrings of the rooms and their files: python docs/make_architecture.py"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LEAVES = ("losses", "data", "configs")  # top-level folders that are installed as rooms of the package

# The floors, from the top down: an import goes to a lower floor, and rooms of one floor do not know each other.
FLOORS = (
    ("launch",),
    ("cli",),
    ("rounds",),
    ("run",),
    ("training", "planner"),
    ("evaluation",),
    ("reference", "sampling", "judges", "pairing"),
    ("models", "report", "answers"),
    ("scoring", "config", "checkpoints"),
    ("cache", "runtime", "metrics", "remote"),
    ("losses", "data"),
    ("configs",),
)

PAGE = """# How is the code laid out?

Made by `python docs/make_architecture.py` from the docstrings of the rooms and of their files: edit those. A test
([tests/test_layout.py](../tests/test_layout.py)) holds this page, and every rule on it.

A room is a folder with one purpose and one face: its `__init__.py` says in a sentence what it is for, what must never
be in it, and in `__all__` what other rooms may take. Across rooms, imports go through faces
(`from alignlab.scoring import score`); inside a room they are relative. A room may have an inner room, a folder of its
own with a face for the files of that room alone. `losses/`, `data/` and `configs/` stand at the
top of the checkout, and are installed as `alignlab.losses`, `alignlab.data` and `alignlab.configs`.

## The floors

An import goes to a lower floor. Rooms of one floor do not know each other, and no two files import each other in a
circle. {rooms} rooms, {arrows} arrows between them.

| floor | room | what it is for | never here | imports |
|---|---|---|---|---|
{floors}

## One training step

What `PreferenceTrainer` does between two updates of the weights, room by room in the order in which they are entered,
for DPO on packed rows with cached reference scores. `N` rows a micro-batch, `F` completions of each (`chosen` and
`rejected`: 2), `T` positions of the longest one, `S` tokens that go through the model, `M` predictions
of tokens that count (a prompt's last token makes one for each completion).

| room | what happens | what is handed on |
|---|---|---|
{step}

Then `training` sums the rows' losses over the whole step, and the Trainer of transformers takes gradient and update.
The table's order is that of a traced step; `python benchmarks/rooms.py` prints every switch between rooms of a step,
and counts those of a whole `alignlab train`.

## The files

{files}
"""

# What happens in a room during one step, in the order in which the rooms are entered first.
STEP = (
    (
        "training",
        "asks the loader for the step's micro-batches, and counts their rows over all ranks",
        "rows, `N`",
    ),
    (
        "data",
        "puts prompts and completions into one packed row that shares prompts, and says what predicts what",
        "`completions`: `input_ids`, `position_ids` `[1, S]`, `predict`, `target`, `slot` `[M]`, `mask [F, N, T]`; "
        "`row`, `real` `[N]`",
    ),
    (
        "reference",
        "knows the store of the scores that the collator asks for",
        "content keys, 16 bytes a completion",
    ),
    ("cache", "reads them from mapped shards", "`scores`: `reference [F, N, T]` float32"),
    ("scoring", "runs the model, and its LM head in chunks over the `M` positions", "`logps [F, N, T]` float32"),
    ("runtime", "says which module stands under an engine's wrappers", "the module"),
    (
        "losses",
        "makes one number a row of the `Pairs`, `Labelled` or `Listed` that `training` made of the scores",
        "`LossOutput`: `loss [N]`, detached rewards `[N]`, metrics as (sum, count)",
    ),
    ("checkpoints", "looks whether a signal or the time limit asks for a stop", "save, stop, or go on"),
)


class Import(NamedTuple):
    """One imported name: ``from <dots><module> import <name>``; of ``import module`` the name is empty."""

    line: int
    level: int
    module: tuple[str, ...]
    name: str


class House:
    """The rooms and files of a checkout, read from their text; nothing is imported."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        inside = sorted({one.parent.name for one in (root / "alignlab").glob("*/*.py")} - {*LEAVES})
        self.folders = {name: root / "alignlab" / name for name in inside}
        self.folders |= {name: root / name for name in (*LEAVES, "launch")}

    def files(self, room: str) -> list[Path]:
        """Returns the Python files of a room, its face first; not those behind the links inside the package."""
        return sorted(self.folders[room].rglob("*.py"))

    def inner(self, room: str) -> list[Path]:
        """Returns the folders inside a room that are packages of their own."""
        return sorted(
            path.parent for path in self.folders[room].rglob("__init__.py") if path.parent != self.folders[room]
        )

    def every_file(self) -> Iterator[tuple[str, Path]]:
        """Yields (room, file) of the whole house; the package's own files stand in the room ""."""
        yield from (("", path) for path in sorted((self.root / "alignlab").glob("*.py")))
        for room in self.folders:
            yield from ((room, path) for path in self.files(room))

    def face(self, room: str | Path) -> list[str]:
        """Returns ``__all__`` of a room, or of the folder of an inner one."""
        path = self._folder(room) / "__init__.py"
        for node in _tree(path).body if path.exists() else ():
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return [str(one) for one in ast.literal_eval(node.value)]
        return []

    def _folder(self, room: str | Path) -> Path:
        return room if isinstance(room, Path) else self.folders[room]

    def says(self, room: str | Path) -> tuple[str, str]:
        """Returns a room's sentence, and what must never be in it; both empty where its docstring has none."""
        text = docstring(self._folder(room) / "__init__.py")
        never = re.search(r"^Never here: (.+)", text, re.MULTILINE | re.DOTALL)
        return sentence(text), " ".join(never[1].split()) if never else ""

    def arrows(self) -> dict[tuple[str, str], list[str]]:
        """Returns (room, room it imports) -> the places, "file:line"."""
        found: dict[tuple[str, str], list[str]] = {}
        for room, path in self.every_file():
            for one in imports(path):
                target = self.target(one)
                if room and target and target != room:
                    found.setdefault((room, target), []).append(f"{path.relative_to(self.root)}:{one.line}")
        return found

    def target(self, one: Import) -> str | None:
        """Returns the room that an absolute import leads to, None where it leads out of the house."""
        if one.level or one.module[0] != "alignlab":
            return None
        room = one.module[1] if len(one.module) > 1 else one.name
        return room if room in self.folders else None


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstring(path: Path) -> str:
    """Returns the docstring of a file, or nothing."""
    return (ast.get_docstring(_tree(path)) or "") if path.exists() else ""


def sentence(text: str) -> str:
    """Returns the first paragraph of a docstring in one line, as Markdown, without the full stop."""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".").replace("``", "`")


def imports(path: Path) -> Iterator[Import]:
    """Yields every import of a file, wherever it stands."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, 0, tuple(alias.name.split(".")), "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = tuple((node.module or "").split("."))
            yield from (Import(node.lineno, node.level, module, alias.name) for alias in node.names)


def page(house: House) -> str:
    """Returns the page."""
    arrows = sorted(house.arrows())
    floors = []
    for number, names in enumerate(FLOORS):
        for name in names:
            says, never = house.says(name)
            below = ", ".join(f"`{to}`" for at, to in arrows if at == name)
            says = says or "Scripts for launchers that start a file, and Slurm job templates"
            floors.append(
                f"| {len(FLOORS) - number} | [`{name}`](#{name}) | {says} | {never.removesuffix('.')} | {below} |"
            )
    step = "\n".join(f"| `{room}` | {what} | {handed} |" for room, what, handed in STEP)
    files = "\n".join(line for names in FLOORS for name in names for line in _files(house, name))
    return PAGE.format(
        rooms=len(house.folders), arrows=len(arrows), floors="\n".join(floors), step=step, files=files.rstrip()
    )


def _files(house: House, room: str) -> Iterator[str]:
    """Yields a room's section: each file with its sentence; of the losses only what they share."""
    folder = house.folders[room]
    yield from (f"### {room}", "", "| file | |", "|---|---|")
    for path in house.files(room):
        if path.parent == folder and (path.name == "__init__.py" or (room == "losses" and path.name[0] != "_")):
            continue
        name = str(path.relative_to(folder)).replace("__init__.py", "")  # an inner room is named as a folder
        says = sentence(docstring(path)).replace("|", "\\|")
        yield f"| [`{name}`](../{path.relative_to(house.root)}) | {says} |"
    if room == "losses":
        yield "| every other file | one loss, [listed here](losses.md) |"
    if room == "configs":
        for path in sorted(folder.glob("*.yaml")):
            first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").removesuffix(".")
            yield f"| [`{path.name}`](../{path.relative_to(house.root)}) | {first} |"
    yield ""


if __name__ == "__main__":
    Path(__file__).with_name("architecture.md").write_text(page(House()), encoding="utf-8")
