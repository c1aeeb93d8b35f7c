"""The pages are true: examples run, commands parse, messages are those of the program."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from making import make_rows

from alignlab import losses
from alignlab.cli import main
from alignlab.config.parser import parse_yaml
from alignlab.config.run import load_config, schema
from alignlab.data import check

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = ("alignlab train ", "launch/train.py ", "launch/slurm_one_node.sbatch ")
MINIMAL = {"loss": {"name": "dpo"}, "model": {"name_or_path": "sft"}, "data": {"train": "pairs.jsonl"}}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it stands for (the second word behind the fence), and its text."""

    page: Path
    language: str
    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.text.splitlines()[0][:40]}"


def blocks(language: str, *pages: Path) -> list[Block]:
    found = []
    for page in pages or PAGES:
        fences = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found += [Block(page, *fence) for fence in fences if fence[0] == language]
    return found


@pytest.fixture
def folder(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with what the pages name: a model, pairs, and the files whose text they give."""
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "sft-model").symlink_to(model_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)), encoding="utf-8")
    for language in ("python", "yaml", "jsonl"):
        for block in blocks(language):
            if block.file:
                (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("mine", "margin"):
        sys.modules.pop(name, None)


def logged(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "train_loss" in entry]


def test_python_examples_run(folder: Path) -> None:
    """12 pairs: 8 of them in two steps of 4, or all in three, with the custom class and the custom function."""
    scope: dict[str, Any] = {}
    for block in blocks("python", ROOT / "README.md", ROOT / "docs" / "custom-loss.md"):
        if not block.file:
            exec(compile(block.text, "README.md", "exec"), scope)
    assert (folder / "runs" / "ipo" / "model.safetensors").is_file()
    assert scope["trainer"].state.global_step == 2
    # Learning rates of 1e-6 hardly move the policy, so every loss is near that of a margin of 0.
    for name, expected in (("with_class", math.log1p(math.exp(0.3))), ("with_function", 1.0)):
        assert scope[name].state.global_step == 3
        assert logged(scope[name])[0]["train_loss"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("page", ["config.md", "from-trl.md"])
def test_python_in_the_pages_runs(page: str, folder: Path) -> None:
    (block,) = blocks("python", ROOT / "docs" / page)
    exec(compile(block.text, page, "exec"), {})


def test_custom_loss_keeps_the_contract_and_trains_from_yaml(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "check", "margin.py:FixedMargin"]) == 0
    assert main(["train", "margin.yaml", "--loss.margin", "0.5", "--max_steps", "2"]) == 0
    assert "keeps the contract" in capsys.readouterr().out
    state = json.loads((folder / "runs" / "margin" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert state["log_history"][-1]["train_loss"] == pytest.approx(math.log1p(math.exp(0.5)), abs=1e-3)
    assert main(["train", "margin.yaml", "--loss.marign", "0.5"]) == 2
    assert "loss.marign: there is no option 'marign'; did you mean margin" in capsys.readouterr().err


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.text.splitlines()]
    return [line for line in lines if any(start in line for start in STARTS)]


@pytest.mark.parametrize("command", commands())
def test_training_commands_load(command: str, folder: Path) -> None:
    start = next(start for start in STARTS if start in command)
    config, *overrides = shlex.split(command.split(start)[1], comments=True)
    load_config(config, overrides)


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if not block.file], ids=str)
def test_yaml_fragments_load(block: Block, folder: Path) -> None:
    load_config({**MINIMAL, **parse_yaml(block.text, str(block))})


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_consoles_show_what_the_program_says(block: Block, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line under a command stands in its output; lines that a page leaves out are not missed."""
    for part in re.split(r"^\$ alignlab ", block.text, flags=re.MULTILINE)[1:]:
        command, *expected = part.splitlines()
        main(shlex.split(command))
        captured = capsys.readouterr()
        output = (captured.out + captured.err).splitlines()
        for line in expected:
            assert line in output, command


@pytest.mark.parametrize("block", [block for block in blocks("jsonl") if not block.file], ids=str)
def test_every_form_of_row_is_read(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(block.text, encoding="utf-8")
    report = check([path], progress=False).report
    assert report.rows_kept == report.rows_read == len(block.text.splitlines()), report.bad_rows_text()


def table_rows(page: str, heading: str) -> list[list[str]]:
    """Returns the cells of the table under a heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line] for line in lines]


@pytest.mark.parametrize(("theirs", "ours"), [row[:2] for row in table_rows("from-trl.md", "Losses")])
@pytest.mark.filterwarnings("ignore:loss.name")
def test_trl_names_of_losses_are_ours(theirs: str, ours: str) -> None:
    built = losses.build(parse_yaml(ours.strip("`"), "from-trl.md"))
    assert type(losses.build(theirs.strip("`"))) is type(built)


@pytest.mark.parametrize(("theirs", "ours"), [row[:2] for row in table_rows("from-trl.md", "Options")])
def test_trl_options_are_where_the_table_says(theirs: str, ours: str) -> None:
    """ "same" means a key of ours; every other option is refused under its old name."""
    for key in re.findall(r"`(\w+)`", theirs):
        assert (key in schema().types) == ours.startswith("same"), key


def test_the_function_of_the_readme_keeps_the_contract_and_trains(folder: Path) -> None:
    """The hinge at a margin of 0 is 1, whatever beta."""
    assert main(["losses", "check", "mine.py:hinge"]) == 0
    words = "train dpo.yaml --loss.name mine.py:hinge --loss.beta 0.5 --model.name_or_path path/to/sft-model"
    assert main([*words.split(), "--data.train", "pairs.jsonl", "--data.eval_rows", "2", "--max_steps", "1"]) == 0
    state = json.loads((folder / "runs" / "dpo" / "trainer_state.json").read_text())
    (found,) = [entry["train_loss"] for entry in state["log_history"] if "train_loss" in entry]
    assert found == pytest.approx(1.0, abs=1e-3)


def test_the_index_asks_the_question_of_every_page_once() -> None:
    lines = re.findall(r"^- \[(.+)\]\((.+)\)$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "docs" / "results" / "README.md"]
    titles = {page.name: page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for page in pages}
    inside = {Path(target).name: asked for asked, target in lines if not target.startswith("..")}
    assert len({target for _, target in lines}) == len(lines)
    assert inside == {name: title for name, title in titles.items() if name != "index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target
