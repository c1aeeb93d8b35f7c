"""What `mkdocs build` asks of us: the menu is docs/index.md, the API pages are the faces, every link holds."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BESIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# What people import: a page each, of every name that the face offers.
FACES = {
    "alignlab": "Runs from Python",
    "alignlab.losses": "Losses, and what they are made of",
    "alignlab.data": "Rows to batches",
    "alignlab.scoring": "Log-probabilities of a batch",
    "alignlab.metrics": "Metrics",
    "alignlab.judges": "Judges",
    "alignlab.sampling": "Answers that a model draws",
    "alignlab.cache": "Scores and prepared rows on disk",
}


def on_config(config: Any) -> Any:
    """Makes the menu of the headings and links of docs/index.md, and puts the API behind them."""
    menu: list[Any] = [{"Start": "index.md"}]
    for line in (DOCS / "index.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            menu.append({line.removeprefix("## "): []})
        elif found := re.fullmatch(r"- \[(.+)\]\((.+)\)", line):
            next(iter(menu[-1].values())).append({found[1]: BESIDE.get(found[2].removeprefix("../"), found[2])})
    menu.append({"Python": [{title: f"api/{face}.md"} for face, title in FACES.items()]})
    config.nav = menu
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that stand at the top of the checkout, and one for each face."""
    for source, name in BESIDE.items():
        if name == "index.md":
            continue
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_relinked(text, ROOT, name, config)))
    for face, title in FACES.items():
        files.append(File.generated(config, f"api/{face}.md", content=_face_page(face, title)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turns links to files outside of docs/ into links to their page, to the repository, or into plain words."""
    source = page.file.abs_src_path
    if source is None or not Path(source).is_relative_to(DOCS):
        return markdown
    if page.file.src_uri == "index.md":  # the first page says what this is, then what there is to read
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        return (
            _relinked(readme, ROOT, "index.md", config) + "\n" + _relinked(_lower(markdown), DOCS, "index.md", config)
        )
    return _relinked(markdown, Path(source).parent, page.file.src_uri, config)


def _face_page(face: str, title: str) -> str:
    """Returns the page of a face: what it says of itself, then every name that it offers, from its file."""
    tree = ast.parse((ROOT / face.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    homes = {
        alias.name: f"{face}.{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    offered = [name for one in lists for name in ast.literal_eval(one) if name in homes]
    parts = [f"# {title}", f"`{face}`: {ast.get_docstring(tree)}"]
    parts += [f"::: {homes[name]}.{name}\n    options:\n      heading: {name}" for name in offered]
    return "\n\n".join(parts) + "\n"


def _lower(markdown: str) -> str:
    """Returns a page with each heading one level lower."""
    return re.sub(r"^#", "##", markdown, flags=re.MULTILINE)


def _relinked(markdown: str, folder: Path, name: str, config: Any) -> str:
    """Returns the text of the page ``name``, written in ``folder`` of the checkout, its links made to hold."""

    def link(found: re.Match[str]) -> str:
        picture, words, target, anchor = found.groups()
        if "://" in target or not target:
            return found[0]
        path = Path(os.path.normpath(folder / target))
        if path.is_relative_to(DOCS) and path.suffix:
            inside = path.relative_to(DOCS).as_posix()
        elif str(path.relative_to(ROOT)) in BESIDE:
            inside = BESIDE[str(path.relative_to(ROOT))]
        elif config.repo_url:
            return (
                f"[{words}]({config.repo_url.rstrip('/')}/blob/main/{path.relative_to(ROOT).as_posix()}{anchor or ''})"
            )
        else:
            return words
        return f"{picture}[{words}]({os.path.relpath(inside, os.path.dirname(name) or '.')}{anchor or ''})"

    markdown = re.sub(r"^```(\w+) (\S+)$", r'```\1 title="\2"', markdown, flags=re.MULTILINE)
    fenced = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    for index in range(0, len(fenced), 2):
        fenced[index] = re.sub(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, fenced[index])
    return "".join(fenced)
