"""The house keeps its plan: map and links agree, arrows point one way, no file outgrows its budget."""

import ast
import tomllib
from pathlib import Path

import pytest

from alignlab import losses

ROOT = Path(__file__).resolve().parent.parent
LEAVES = ("losses", "data", "configs")
ROOMS = {
    room: sorted((ROOT / room).glob("*.py")) for room in ("alignlab", "alignlab/metrics", "losses", "data", "launch")
}
SOURCES = [path for files in ROOMS.values() for path in files]


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import in a file; level 0 is absolute, 1 the own package."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def test_map_and_links_agree():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    expected = {"alignlab": "alignlab", **{f"alignlab.{leaf}": leaf for leaf in LEAVES}}
    assert setuptools["package-dir"] == expected
    assert sorted(setuptools["packages"]) == sorted([*expected, "alignlab.metrics"])
    for leaf in LEAVES:
        link = ROOT / "alignlab" / leaf
        if not link.is_symlink() and link.is_file():
            pytest.skip("this checkout was made without symbolic links; the map alone serves it")
        assert link.readlink() == Path("..") / leaf


def test_the_package_is_one_not_two():
    assert losses.build("dpo").__class__.__module__ == "alignlab.losses.dpo"


@pytest.mark.parametrize("path", ROOMS["losses"] + ROOMS["data"], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_leaf_rooms_import_only_their_own(path):
    for level, module in imports(path):
        assert level <= 1, f"{path} reaches out of its room: {'.' * level}{module}"
        assert level == 1 or module.split(".")[0] not in ("alignlab", *LEAVES, "launch"), f"{path} imports {module}"


@pytest.mark.parametrize("path", ROOMS["alignlab"] + ROOMS["launch"], ids=lambda path: path.name)
def test_nobody_imports_the_leaf_folders_by_their_bare_names(path):
    for level, module in imports(path):
        assert level > 0 or module.split(".")[0] not in LEAVES, f"{path} imports {module}"
        assert module.split(".")[0] != "launch", f"{path} imports {module}"


def compared_texts(path: Path) -> set[str]:
    """Texts that stand in a comparison or in the pattern of a ``match``."""
    texts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare | ast.MatchValue):
            texts |= {
                one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
    return texts


@pytest.mark.parametrize("path", ROOMS["alignlab"] + ROOMS["data"], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_room_but_losses_asks_a_loss_its_name(path):
    aliases = {alias for name in losses.names() for alias in losses.describe(name).aliases}
    assert not compared_texts(path) & ({*losses.names()} | aliases)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), f"{path} says nothing of itself"
