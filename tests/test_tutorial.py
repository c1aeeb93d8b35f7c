"""The tutorial is true: its commands run in the order in which they stand, and so do the cells of the notebook."""

import json
import re
import shlex
from pathlib import Path

import pytest
from making import make_rows

from alignlab.cli import main

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture
def folder(tmp_path, model_path, monkeypatch):
    """A working folder with what the demo leaves, tiny, and what the reader is said to have."""
    for place in ("runs/demo/sft", "path/to/sft-model"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(model_path)
    for name in ("runs/demo/train.jsonl", "runs/demo/heldout.jsonl", "pairs.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["first-run", "my-data", "my-loss"])
def test_the_commands_of_a_page_run(page, folder):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    for name, body in re.findall(r"^```python (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(body, encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("alignlab ")]
    assert len(commands) >= 2
    if page == "first-run":  # what `make demo` has left
        assert main(["train", "demo.yaml"]) == 0
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    if page == "first-run":
        assert (folder / "both.html").stat().st_size > 10_000


def test_the_rows_of_a_page_are_read(folder, capsys):
    (row,) = re.findall(r"^```json\n(.*?)^```$", (DOCS / "my-data.md").read_text(encoding="utf-8"), re.M | re.S)
    (folder / "mine.jsonl").write_text(row, encoding="utf-8")
    assert main(["data", "check", "mine.jsonl"]) == 0
    assert "0 bad" in capsys.readouterr().out or json.loads(row)["prompt"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(DOCS / "first-run.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # what it shows is what it computes
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    words = "".join(output.get("text", "") for output in shown)
    before, after = (float(value) for value in re.findall(r"accuracy (?:before|after) (0\.\d+|1\.0+)", words))
    assert after > before
