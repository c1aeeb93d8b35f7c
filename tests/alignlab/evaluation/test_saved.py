"""`alignlab eval`: figures, files, errors, ranks, and the page that explains them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import make_model, make_rows, make_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config

from alignlab.cli import main
from alignlab.cli.evaluate import _parser, read_judge
from alignlab.config import PreferenceConfig
from alignlab.evaluation import EvalOptions, evaluate, flat
from alignlab.evaluation.in_training import LOGGED
from alignlab.judges import build_judge
from alignlab.training import PreferenceTrainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Two models, eleven pairs in two groups, and a judge that counts letters."""
    path = tmp_path_factory.mktemp("eval")
    for seed, name in enumerate(("policy", "reference")):
        make_model(seed).save_pretrained(path / name)
        make_tokenizer().save_pretrained(path / name)
    rows = make_rows(11, groups=("a", "b"))
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (path / "judge.py").write_text("def letters(prompt, completion):\n    return completion.count('e') - len(prompt)\n")
    return path


# ---- the command -------------------------------------------------------------------------------------------------


def run_eval(folder: Path, out: Path, *words: str) -> dict[str, Any]:
    command = ["eval", str(folder / "policy"), "--data", str(folder / "rows.jsonl"), "--output", str(out), *words]
    assert main(command) == 0
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures in tables and JSON, and every row in JSONL, from which the figures follow."""
    judge = f"{folder}/judge.py:letters"
    words = ["--reference", str(folder / "reference"), "--beta", "0.5", "--generate", "4", "--samples", "2"]
    words += ["--max_new_tokens", "8", "--judge", judge, "--rows", str(tmp_path / "rows.jsonl")]
    result = run_eval(folder, tmp_path / "out.json", *words)
    shown = capsys.readouterr().out
    for name in ("preference/accuracy", "group/worst_accuracy", "kl/exact", "win/win_rate", "diversity/self_bleu"):
        assert name in shown
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [line for line in lines if line["kind"] == "pair"]
    answers = [line for line in lines if line["kind"] == "answer"]
    assert len(pairs) == 11
    assert len(answers) == result["answers"]["answers"] == 8
    assert pairs[4]["source"] == f"{folder}/rows.jsonl:5"
    margins = [
        0.5 * (row["chosen_logp"] - row["ref_chosen_logp"] - row["rejected_logp"] + row["ref_rejected_logp"])
        for row in pairs
    ]
    assert result["pairs"]["calibration"]["margin"] == pytest.approx(np.mean(margins))
    assert result["pairs"]["preference"]["accuracy"] == np.mean([margin > 0 for margin in margins])
    first = answers[0]
    assert first["prompt"] == make_rows(11, groups=("a", "b"))[0]["prompt"]
    assert first["verdict"]["reward"] == first["answer"].count("e") - len(first["prompt"])
    assert result["judge"] == {"name": judge}
    assert result["answers"]["win"]["wins"] == sum(row["verdict"]["outcome"] == 1 for row in answers)
    assert result["environment"]["packages"]["torch"] == torch.__version__


def test_without_a_reference_rewards_are_log_probabilities(folder: Path, tmp_path: Path) -> None:
    result = run_eval(folder, tmp_path / "out.json", "--generate", "1", "--max_new_tokens", "2")
    assert result["reference"] is None
    assert result["pairs"]["preference"]["accuracy"] == result["pairs"]["likelihood"]["accuracy"]
    assert "displacement" not in result["pairs"]
    assert "kl" not in result["answers"]
    assert result["answers"]["diversity"]["self_bleu"] is None  # one answer has no other: null, not NaN


def test_it_measures_what_training_measures(folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    """Margin and accuracy of a trained model equal those of the trainer's own evaluation."""
    rows = str(folder / "rows.jsonl")
    args = PreferenceConfig(
        output_dir=str(tmp_path / "run"), max_steps=4, learning_rate=5e-3, save_strategy="no", disable_tqdm=True
    )
    trainer = PreferenceTrainer(str(folder / "policy"), args, {"name": "dpo", "beta": 0.3}, rows, rows, tokenizer)
    trainer.train()
    theirs = trainer.evaluate()
    trainer.save_model()
    options = EvalOptions(str(tmp_path / "run"), rows, reference=str(folder / "policy"), beta=0.3)
    ours = evaluate(options)["pairs"]
    assert ours["calibration"]["margin"] == pytest.approx(theirs["eval_rewards/margins"], abs=1e-4)
    assert ours["preference"]["accuracy"] == pytest.approx(theirs["eval_rewards/accuracies"])
    assert ours["calibration"]["nll"] == pytest.approx(theirs["eval_loss"], abs=1e-4)
    assert ours["group"]["worst_accuracy"] == pytest.approx(theirs["eval_group/worst_accuracy"])
    assert theirs["eval_rewards/margins"] > 0.1, "it learnt something"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge", "x.py:f"], "--judge: there is nothing to judge"),
        (["--generate", "1", "--judge", "x.py:f"], "judge.name: no file x.py"),
        (["--generate", "-1"], "--generate: expected at least 0, found -1"),
        (["--beta", "0"], "--beta: expected a number above 0, found 0.0"),
        (["--output", "nowhere/out.json"], "--output: nowhere/out.json must be a file in a folder that exists"),
        (["--reference", "./nothing"], "--reference: "),
        (["--tokenizer", "./nothing"], "--tokenizer: "),
        (["--data", "bad.jsonl"], "bad.jsonl:2: rejected is missing"),
        (["--data", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_bad_input_is_named(
    words: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    good = json.dumps(make_rows(1)[0])
    (tmp_path / "bad.jsonl").write_text(f'{good}\n{{"prompt": "a", "chosen": "b"}}\n', encoding="utf-8")
    assert main(["eval", str(folder / "policy"), "--data", str(folder / "rows.jsonl"), *words]) == 2
    error = capsys.readouterr().err
    assert "alignlab: error: " in error
    assert message in error


@pytest.mark.slow
def test_two_ranks_measure_what_one_process_does(folder: Path, tmp_path: Path) -> None:
    """Eleven pairs and five prompts are uneven shares; answers are the same, figures equal to 1e-4."""
    judge = f"{folder}/judge.py:letters"
    words = ["--reference", str(folder / "reference"), "--generate", "5", "--max_new_tokens", "8", "--judge", judge]
    one = run_eval(folder, tmp_path / "one.json", *words, "--rows", str(tmp_path / "one.jsonl"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "alignlab", "eval", str(folder / "policy"), "--data", str(folder / "rows.jsonl"), *words]
    files = ["--output", str(tmp_path / "two.json"), "--rows", str(tmp_path / "two.jsonl")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *command, *files], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two.json").read_text(encoding="utf-8"))
    assert two["environment"]["ranks"] == 2
    for part in ("pairs", "answers"):
        assert flat(two[part]) == pytest.approx(flat(one[part]), abs=1e-4)
    texts = [
        [json.loads(line).get("answer") for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        for name in ("one.jsonl", "two.jsonl")
    ]
    assert texts[0] == texts[1]
    assert done.stdout.count("held-out pairs") == 1


# ---- the page ----------------------------------------------------------------------------------------------------


PAGE = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_pages_commands_are_understood() -> None:
    commands = [line for block in fenced("bash") for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        program, name, *words = shlex.split(command)
        assert (program, name) == ("alignlab", "eval")
        arguments = {name: one for name, one in vars(_parser().parse_args(words)).items() if "lm_eval" not in name}
        assert EvalOptions(**{**arguments, "judge": read_judge(arguments["judge"])}).model == "runs/dpo"


def test_the_pages_judge_is_made() -> None:
    spec = read_judge(shlex.split(fenced("bash")[1])[-1])
    assert build_judge(spec or "").description == "judge-large at https://judge.example/v1"


def test_the_pages_python_runs() -> None:
    (code,) = fenced("python")
    exec(compile(code, "metrics.md", "exec"), {})


def test_the_page_explains_every_figure(folder: Path, tmp_path: Path) -> None:
    """Sections and figures of a whole evaluation stand in the tables; names in the log stand in the text."""
    words = ["--reference", str(folder / "reference"), "--generate", "2", "--samples", "2", "--max_new_tokens", "2"]
    result = run_eval(folder, tmp_path / "out.json", *words, "--judge", f"{folder}/judge.py:letters")
    for part in ("pairs", "answers"):
        for section, figures in result[part].items():
            if isinstance(figures, dict):
                assert f"`{section}/" in PAGE or f"`{section}`" in PAGE, section
    for name in LOGGED:
        assert name in PAGE.split("## During training")[1], name


def test_rows_and_answers_that_outgrow_a_table_of_positions_are_refused(folder: Path, tmp_path: Path) -> None:
    """They ended in an IndexError, after an hour of scoring where the longest row stood last."""
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=48, bos_token_id=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "table")
    make_tokenizer().save_pretrained(tmp_path / "table")
    asked: dict[str, Any] = {"model": str(tmp_path / "table"), "data": str(folder / "rows.jsonl")}
    with pytest.raises(
        ValueError, match=r"^--max_new_tokens: prompts and answers have up to \d+ tokens, and the model"
    ):
        evaluate(EvalOptions(**asked, generate=2, max_new_tokens=48, max_length=48))
    config.n_positions = 16
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "table")
    said = r"^--max_length: the longest row has \d+ tokens, .* positions for 16, in a table"
    with pytest.raises(ValueError, match=said):
        evaluate(EvalOptions(**asked))
