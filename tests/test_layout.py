"""The house keeps its plan: floors, faces, packages, pages and sizes; each of these checks sees a planted breach."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest
from make_architecture import FLOORS, LEAVES, STEP, House, docstring, imports, page

from alignlab import losses

ROOT = Path(__file__).resolve().parent.parent
LINES, BODY, PARAMETERS = 320, 50, 8
EXCEPTIONS = {  # what is over a limit, and why
    "alignlab/training/trainer.py PreferenceTrainer.__init__": "the arguments of TRL's trainers, which people know",
}
BY_PATH = "metrics"  # `evaluate` loads its files by path, outside of the package: there nothing is relative


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


# ---- the checks: each returns what breaks the rule ---------------------------------------------------------------


def up_or_beside(house: House) -> list[str]:
    """Imports of a room that is not on a lower floor, and rooms that are on no floor or on one only by name."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    found = [f"{room}: on no floor" for room in house.folders if room not in floor]
    found += [f"{room}: not there" for room in floor if room not in house.folders]
    for (room, below), places in house.arrows().items():
        if floor.get(room, -1) >= floor.get(below, 99):
            found.append(f"{', '.join(places)}: {room} imports {below}")
    return found


def circles(house: House) -> list[str]:
    """Files of a room, or of an inner one, that import each other in a circle."""
    found = []
    for _, folder in [*house.folders.items(), *_inner(house)]:
        graph: dict[str, set[str]] = {}
        for path in folder.glob("*.py"):
            if path.name != "__init__.py":
                inside = {one.module[0] or one.name for one in imports(path) if one.level == 1}
                graph[path.stem] = {name for name in inside if (folder / f"{name}.py").exists()}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            found.append(f"{folder.name}: {' -> '.join(error.args[1])}")
    return found


def behind_faces(house: House) -> list[str]:
    """Imports across rooms of what is not in a room's ``__all__``, and absolute imports inside a room."""
    found = []
    for room, path in house.every_file():
        own = [alias for alias in _rooms_by_name(path) if alias in house.folders]
        inner = [folder for one, folder in _inner(house) if one == room]
        for one in imports(path):
            place, target = f"{path.relative_to(house.root)}:{one.line}", house.target(one)
            if one.level > 1 or (one.level == 0 and one.module[0] in ("launch", *LEAVES)):
                found.append(f"{place}: reaches out of its room")
            elif target == room and room != BY_PATH:
                found.append(f"{place}: inside a room imports are relative")
            elif one.level == 0 and one.module[0] == "alignlab" and not target:
                found.append(f"{place}: a room is named, and nothing else of the package")
            elif one.level == 1 and one.module[0] and (within := path.parent / one.module[0]) in inner:
                if len(one.module) > 1 or one.name not in house.face(within):
                    found.append(f"{place}: {'.'.join(one.module)} does not offer {one.name}")
            elif one.level == 1 and room and not one.module[0] and not _is_file(path, one.name):
                found.append(f"{place}: takes {one.name} from the face of its own room, in a circle")
            elif target and (not one.name or len(one.module) > 2):
                found.append(f"{place}: goes behind the face of {target}")
            elif target and len(one.module) == 2 and one.name not in house.face(target):
                found.append(f"{place}: {target} does not offer {one.name}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            taken = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in own
            if taken and node.attr not in house.face(node.value.id):  # type: ignore[attr-defined]
                found.append(f"{path.relative_to(house.root)}:{node.lineno}: {ast.unparse(node)} is not offered")  # type: ignore[attr-defined]
    return found


def _inner(house: House) -> list[tuple[str, Path]]:
    """Returns (room, folder) of every inner room."""
    return [(room, folder) for room in house.folders for folder in house.inner(room)]


def _is_file(path: Path, name: str) -> bool:
    return path.with_name(f"{name}.py").exists() or path.with_name(name).is_dir()


def _rooms_by_name(path: Path) -> Iterator[str]:
    """Yields the names of ``from alignlab import NAME``."""
    yield from (one.name for one in imports(path) if one.level == 0 and one.module == ("alignlab",))


def reaching_out(house: House) -> list[str]:
    """Imports of the leaf rooms, which know nobody in the house but themselves."""
    found = []
    for room in ("losses", "data"):
        for path in house.files(room):
            for one in imports(path):
                if one.level > 1 or (one.level == 0 and one.module[0] in ("alignlab", "launch", *LEAVES)):
                    found.append(f"{path.relative_to(house.root)}:{one.line}: {'.'.join(one.module)}")
    return found


def unpacked(house: House) -> list[str]:
    """Rooms that pyproject.toml does not install, and packages that are no room."""
    setuptools = tomllib.loads((house.root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    rooms = {"alignlab", *(f"alignlab.{room}" for room in house.folders if room != "launch")}
    rooms |= {".".join(folder.relative_to(house.root).parts) for _, folder in _inner(house)}
    found = sorted(rooms ^ set(setuptools["packages"]))
    mapped = {"alignlab": "alignlab", **{f"alignlab.{leaf}": leaf for leaf in LEAVES}}
    return found + ([] if setuptools["package-dir"] == mapped else ["package-dir"])


def untold(house: House) -> list[str]:
    """Lines of the README's tree that are not the rooms' own sentences, and rooms that are not in it."""
    tree = (house.root / "README.md").read_text(encoding="utf-8").split("```text\nalignlab/\n")[1].split("```")[0]
    lines = dict(line.strip().split(maxsplit=1) for line in tree.splitlines())
    rooms = [room for room in house.folders if room != "launch"]
    found = [f"{room}/" for room in rooms if lines.get(f"{room}/") != house.says(room)[0]]
    known = {*rooms, "launch", "tests", "benchmarks", "docs"}
    return found + sorted(name for name in lines if name.removesuffix("/") not in known)


def speechless(house: House) -> list[str]:
    """Files without a docstring, rooms that do not say what must never be in them, faces without ``__all__``."""
    found = [str(path.relative_to(house.root)) for _, path in house.every_file() if not docstring(path)]
    flat = {path.name for path in (house.root / "alignlab").glob("*.py")} - {"__init__.py", "__main__.py"}
    found += [f"alignlab/{name}: in no room" for name in sorted(flat)]
    faces = [room for room in house.folders if room not in ("launch", "configs")]
    found += [f"{room}: Never here?" for room in house.folders if room != "launch" and not house.says(room)[1]]
    inner = [folder for _, folder in _inner(house)]
    found += [f"{folder}: Never here?" for folder in inner if not house.says(folder)[1]]
    return found + [f"{room}: __all__?" for room in [*faces, *inner] if not house.face(room)]


def oversized(house: House) -> list[str]:
    """Files, functions and signatures over the limits, exceptions left out; and exceptions that are none any more."""
    found = []
    for _, path in house.every_file():
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(house.root))
        if len(text.splitlines()) > LINES:
            found.append(f"{name}: {len(text.splitlines())} lines")
        for qualified, function in _functions(ast.parse(text)):
            body = function.end_lineno - function.lineno + 1  # type: ignore[operator]
            first = function.body[0]
            if ast.get_docstring(function) is not None:
                body -= first.end_lineno - first.lineno + 1  # type: ignore[operator]
            given = function.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            count = sum(one is not None and one.arg not in ("self", "cls") for one in every)
            if body > BODY or count > PARAMETERS:
                found.append(f"{name} {qualified}: {body} lines, {count} parameters")
    over = {entry.split(":")[0] for entry in found}
    gone = [f"{name}: no exception any more" for name in EXCEPTIONS if name not in over]
    return [entry for entry in found if entry.split(":")[0] not in EXCEPTIONS] + gone


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not isinstance(node, ast.ClassDef):
                yield prefix + node.name, node
            yield from _functions(node, f"{prefix}{node.name}.")
        else:
            yield from _functions(node, prefix)


def asking_names(house: House) -> list[str]:
    """Comparisons with the name of a loss, outside of the losses."""
    aliases = {alias for name in losses.names() for alias in losses.describe(name).aliases}
    names = {*losses.names()} | aliases
    found = []
    for room, path in house.every_file():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if room != "losses" else ():
            if isinstance(node, ast.Compare | ast.MatchValue):
                values = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
                texts = {value for value in values if isinstance(value, str)}
                if texts & names:
                    found.append(f"{path.relative_to(house.root)}:{node.lineno}: {sorted(texts & names)}")
    return found


CHECKS = (
    up_or_beside,
    circles,
    behind_faces,
    reaching_out,
    unpacked,
    untold,
    speechless,
    oversized,
    asking_names,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check: Callable[[House], list[str]], house: House) -> None:
    assert check(house) == []


# ---- each check sees a breach ------------------------------------------------------------------------------------

LONG = "def long():\n" + "    x = 1\n" * 50
BREACHES = [
    (up_or_beside, "alignlab/cache/store.py", "\n\ndef late():\n    from alignlab.training import PreferenceTrainer\n"),
    (up_or_beside, "alignlab/training/loaders.py", "\n\nfrom alignlab.planner import plan\n"),  # beside it
    (up_or_beside, "alignlab/scoring/router.py", "\n\nif TYPE_CHECKING:\n    import alignlab.cli\n"),
    (up_or_beside, "alignlab/attic/__init__.py", '"""A room on no floor."""\n'),
    (circles, "alignlab/cache/shard.py", "\n\nfrom .store import ScoreStore\n"),
    (circles, "losses/_margin.py", "\n\nfrom . import dpo\n"),
    (behind_faces, "alignlab/training/step.py", "\n\nfrom alignlab.scoring.head import head_of\n"),
    (behind_faces, "alignlab/training/step.py", "\n\nfrom alignlab.scoring import _prove\n"),
    (behind_faces, "alignlab/training/step.py", "\n\nimport alignlab.scoring\n"),
    (behind_faces, "alignlab/training/step.py", "\n\nfrom alignlab.training import PreferenceTrainer\n"),
    (behind_faces, "alignlab/training/step.py", "\n\nfrom ..scoring import score\n"),
    (behind_faces, "alignlab/training/step.py", "\n\nfrom alignlab import scoring\n\nscoring.head.head_of(None)\n"),
    (behind_faces, "alignlab/training/step.py", "\n\nfrom losses import build\n"),
    (behind_faces, "launch/train.py", "\n\nfrom alignlab.cli.main import main\n"),
    (behind_faces, "alignlab/cache/store.py", "\n\nfrom alignlab import PreferenceTrainer\n"),
    (behind_faces, "alignlab/cache/store.py", "\n\nimport alignlab\n"),
    (behind_faces, "alignlab/cache/store.py", "\n\nfrom alignlab.helpers import thing\n"),
    (behind_faces, "alignlab/cache/shard.py", "\n\nfrom . import ScoreStore\n"),
    (up_or_beside, "alignlab/attic/thing.py", '"""A file of a folder without a face."""\n'),
    (speechless, "alignlab/helpers.py", '"""A file in no room."""\n'),
    (reaching_out, "losses/dpo.py", "\n\nfrom alignlab.runtime import is_main\n"),
    (reaching_out, "data/prepare.py", "\n\nfrom ..losses import build\n"),
    (unpacked, "alignlab/attic/__init__.py", '"""A room that is not installed."""\n'),
    (untold, "alignlab/attic/__init__.py", '"""A room of which the tree says nothing."""\n'),
    (untold, "alignlab/scoring/__init__.py", ("Batch to", "From batch to")),
    (circles, "alignlab/scoring/kernels/ops.py", "\n\nfrom .trees import tree_attention\n"),
    (behind_faces, "alignlab/scoring/router.py", "\n\nfrom .kernels.ops import tree_forward\n"),
    (behind_faces, "alignlab/scoring/router.py", "\n\nfrom .kernels import tree_forward\n"),
    (behind_faces, "alignlab/scoring/kernels/cpu.py", "\n\nfrom ..router import Router\n"),
    (behind_faces, "alignlab/training/step.py", "\n\nfrom alignlab.scoring.kernels import tree_attention\n"),
    (up_or_beside, "alignlab/scoring/kernels/cpu.py", "\n\nfrom alignlab.models import load_model\n"),
    (unpacked, "alignlab/scoring/attic/__init__.py", '"""An inner room that is not installed."""\n'),
    (speechless, "alignlab/scoring/kernels/__init__.py", ("Never here", "Seldom here")),
    (speechless, "alignlab/scoring/kernels/__init__.py", ("__all__", "ALL")),
    (speechless, "alignlab/scoring/mute.py", "x = 1\n"),
    (speechless, "alignlab/scoring/__init__.py", ("Never here", "Seldom here")),
    (speechless, "alignlab/scoring/__init__.py", ("__all__", "ALL")),
    (oversized, "alignlab/scoring/router.py", "\n" * LINES),
    (oversized, "alignlab/scoring/router.py", "\n\n" + LONG),
    (oversized, "alignlab/scoring/router.py", "\n\ndef wide(a, b, c, d, /, e, f, *g, h, **i): ...\n"),
    (oversized, "alignlab/training/trainer.py", ("class PreferenceTrainer", "class Other")),
    (asking_names, "alignlab/training/step.py", '\n\nif "dpo" == "ipo":\n    pass\n'),
]


@pytest.mark.parametrize(("check", "file", "change"), BREACHES, ids=lambda one: getattr(one, "__name__", ""))
def test_a_breach_is_seen(
    check: Callable[[House], list[str]], file: str, change: str | tuple[str, str], house: House, tmp_path: Path
) -> None:
    """Each check, on a copy of the house with one line planted, names the file (or its room)."""
    for folder in ("alignlab", "losses", "data", "configs", "launch"):
        skipped = shutil.ignore_patterns("__pycache__", *(LEAVES if folder == "alignlab" else ()))
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skipped)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    path = tmp_path / file
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.parent.mkdir(exist_ok=True)
    text = before + change if isinstance(change, str) else before.replace(*change)
    assert text != before
    path.write_text(text, encoding="utf-8")
    found = set(check(House(tmp_path))) - set(check(house))
    assert found
    assert all(file in one or Path(file).parent.name in one for one in found)


# ---- what else holds it together -----------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", LEAVES)
def test_links_lead_to_the_leaf_rooms(leaf: str) -> None:
    link = ROOT / "alignlab" / leaf
    if not link.is_symlink() and link.is_file():
        pytest.skip("this checkout was made without symbolic links; the map alone serves it")
    assert link.readlink() == Path("..") / leaf


def test_the_package_is_one_not_two() -> None:
    assert losses.build("dpo").__class__.__module__ == "alignlab.losses.dpo"


def test_the_page_is_the_generated_one(house: House) -> None:
    committed = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert page(house) == committed, "run python docs/make_architecture.py"


@pytest.mark.slow
def test_a_step_goes_through_the_rooms_as_the_page_says() -> None:
    """The rooms that one traced optimiser step enters, in the order in which it enters them first."""
    words = [sys.executable, str(ROOT / "benchmarks" / "rooms.py"), "step"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("step: ")]
    assert line.split(": ")[2].split(", ") == [room for room, *_ in STEP]


@pytest.mark.parametrize("module", ["alignlab", "alignlab.cli", "alignlab.config"])
def test_torch_is_not_loaded_before_it_is_needed(module: str) -> None:
    script = f"import sys, {module}; sys.exit(sorted({{'torch', 'transformers'}} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("room", [room for rooms in FLOORS for room in rooms if room not in ("launch", "configs")])
def test_a_face_has_what_it_offers(room: str, house: House) -> None:
    face = import_module(f"alignlab.{room}")
    offered = house.face(room)
    assert [name for name in offered if name.startswith("_") or not hasattr(face, name)] == []
    assert len({*offered}) == len(offered)
