"""`alignlab eval`: rows scored and answers sampled exactly, figures by hand, files, errors, ranks."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import make_model, make_rows, make_tokenizer

from alignlab.cli import main
from alignlab.cli.evaluate import _parser, read_judge
from alignlab.config.arguments import PreferenceConfig
from alignlab.data import prepare
from alignlab.data.collate import sequence
from alignlab.evaluation.dialogues import read_dialogues
from alignlab.evaluation.in_training import LOGGED
from alignlab.evaluation.measure import (
    AnswerRow,
    PairRow,
    answer_figures,
    answer_rows,
    first_of_each_prompt,
    flat,
    pair_figures,
    score_pairs,
)
from alignlab.evaluation.saved import EvalOptions, evaluate
from alignlab.judges.build import build_judge
from alignlab.judges.judge import DISAGREE, Verdict
from alignlab.sampling.chat import log_likelihoods, sequence_kl
from alignlab.sampling.local import SeededGumbel, sample_answers
from alignlab.scoring.probe import choose_layout
from alignlab.training.trainer import PreferenceTrainer

PAD = 0


@pytest.fixture(scope="module")
def policy() -> Any:
    return make_model(0)


@pytest.fixture(scope="module")
def other() -> Any:
    return make_model(1)


@pytest.fixture(scope="module")
def dataset(tokenizer: Any) -> Any:
    return prepare(make_rows(7, groups=("a", "b")), tokenizer, progress=False).dataset


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


# ---- rows --------------------------------------------------------------------------------------------------------


def test_pairs_are_scored_as_a_plain_forward_does(policy: Any, other: Any, dataset: Any) -> None:
    """Sums over completion tokens, under both models; packed or padded, whatever the batch."""
    rows = score_pairs(policy, dataset, PAD, other, batch_size=3)
    assert [row.row for row in rows] == list(range(7))
    for name in ("chosen", "rejected"):
        sequences = [sequence(row, name) for row in dataset]
        for model, prefix in ((policy, ""), (other, "ref_")):
            expected = log_likelihoods(model, sequences, PAD).tolist()
            assert [getattr(row, f"{prefix}{name}_logp") for row in rows] == pytest.approx(expected, abs=1e-3)
        assert [getattr(row, f"{name}_tokens") for row in rows] == [int(one.mask.sum()) for one in sequences]
    assert [row.group for row in rows] == list(dataset["group"])
    mode = choose_layout("packed", [policy, other], PAD)
    packed = score_pairs(policy, dataset, PAD, other, batch_size=7, mode=mode)
    for one, two in zip(rows, packed, strict=True):
        assert [one.chosen_logp, one.ref_rejected_logp] == pytest.approx(
            [two.chosen_logp, two.ref_rejected_logp], abs=1e-3
        )


def test_figures_of_pairs() -> None:
    """Two rows, beta 1/2: rewards 1/2 (-1 + 2) = 1/2 against 0, and 1/2 (-3 + 2) = -1/2 against 0."""
    rows = [
        PairRow(0, "f:1", "a", -1.0, -4.0, 1, 2, -2.0, -4.0),
        PairRow(1, "f:2", "b", -3.0, -2.0, 3, 1, -2.0, -2.0),
    ]
    figures = pair_figures(rows, beta=0.5)
    assert figures["preference"]["accuracy"] == 0.5
    assert figures["calibration"]["margin"] == 0
    assert figures["calibration"]["nll"] == pytest.approx((math.log1p(math.exp(-0.5)) + math.log1p(math.exp(0.5))) / 2)
    assert figures["likelihood"]["accuracy"] == 0.5  # -1 > -4, but -3 < -2
    assert figures["likelihood"]["accuracy_per_token"] == 1.0  # -1 > -2 and -1 > -2
    assert figures["displacement"]["chosen_fell"] == 0.5
    assert figures["group"]["worst_group"] == "b"
    assert figures["groups"]["a"]["accuracy"] == 1.0
    assert figures["length"]["accuracy_chosen_longer"] == 0.0
    alone = pair_figures([PairRow(0, "f:1", None, -1.0, -4.0, 1, 2)], beta=0.5)
    assert alone["calibration"]["margin"] == 1.5
    assert not {"displacement", "groups", "group"} & alone.keys()


def test_noise_makes_the_greedy_choice_a_sample() -> None:
    """4,000 seeds on three logits: frequencies within four standard errors of the softmax."""
    logits = torch.tensor([0.0, 1.0, -1.0])
    choices = SeededGumbel(range(4000))(torch.zeros(4000, 1), logits.expand(4000, 3)).argmax(-1)
    for token, share in enumerate(logits.softmax(-1).tolist()):
        assert abs(float((choices == token).float().mean()) - share) < 4 * math.sqrt(share * (1 - share) / 4000)


def test_an_answer_depends_on_its_own_seed_alone(policy: Any, dataset: Any, tokenizer: Any) -> None:
    """Batches of one or of seven, or another order, draw the same answers; another seed does not."""
    prompts = list(dataset.with_format("numpy")["prompt_ids"])
    options = {"max_new_tokens": 12}

    def drawn(seeds: list[int], order: list[int], **more: Any) -> dict[int, list[int]]:
        answers = sample_answers(policy, tokenizer, [prompts[i] for i in order], seeds, **options, **more)
        return dict(zip(order, [one.completion.tolist() for one in answers], strict=True))

    forward, backward = list(range(7)), list(range(6, -1, -1))
    whole = drawn(forward, forward, batch_size=7)
    assert drawn(forward, forward, batch_size=1) == whole
    assert drawn(backward, backward, batch_size=3) == whole
    assert drawn([one + 100 for one in forward], forward) != whole
    greedy = sample_answers(policy, tokenizer, prompts, None, **options)
    assert [one.completion.tolist() for one in greedy] != [whole[i] for i in forward]


def test_the_models_own_generation_config_does_not_bend_the_distribution(dataset: Any, tokenizer: Any) -> None:
    prompts, plain = [dataset[0]["prompt_ids"]] * 3, make_model(0)
    bent: Any = make_model(0)
    bent.generation_config.update(top_k=1, temperature=0.1, repetition_penalty=9.0, do_sample=True, min_new_tokens=9)
    drawn = [
        [one.completion.tolist() for one in sample_answers(model, tokenizer, prompts, [1, 2, 3], max_new_tokens=8)]
        for model in (plain, bent)
    ]
    assert drawn[0] == drawn[1]


def test_answers_end_with_any_end_token(policy: Any, dataset: Any, tokenizer: Any) -> None:
    """The sixth token of the greedy answer is made an end: the answer is cut behind it."""
    [answer] = sample_answers(policy, tokenizer, [dataset[0]["prompt_ids"]], None, max_new_tokens=12)
    end = int(answer.completion[5])
    ending: Any = make_model(0)
    ending.generation_config.eos_token_id = [1, end]
    [cut] = sample_answers(ending, tokenizer, [dataset[0]["prompt_ids"]], None, max_new_tokens=12)
    length = answer.completion.tolist().index(end) + 1
    assert cut.completion.tolist() == answer.completion.tolist()[:length]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_answers_are_scored_under_both_models(
    layout: str, policy: Any, other: Any, dataset: Any, tokenizer: Any
) -> None:
    """log p, its ratio to the reference and the KL over the whole vocabulary, against separate plain forwards."""
    mode = choose_layout(layout, [policy, other], PAD)
    options: dict[str, Any] = {"samples": 2, "max_new_tokens": 8, "batch_size": 3, "mode": mode}
    rows = answer_rows(policy, tokenizer, dataset, 4, lambda _: None, lambda: nullcontext(other), **options)
    assert [(row.row, row.sample) for row in rows] == [(n, k) for n in range(4) for k in range(2)]
    prompts = [dataset[row.row]["prompt_ids"] for row in rows]
    seeds = [row.row * 2 + row.sample for row in rows]
    answers = sample_answers(policy, tokenizer, prompts, seeds, max_new_tokens=8)
    assert [row.tokens for row in rows] == [len(one.completion) for one in answers]
    mine, theirs = (log_likelihoods(model, answers, PAD).tolist() for model in (policy, other))
    assert [row.logp for row in rows] == pytest.approx(mine, abs=1e-3)
    assert [sum(row.log_ratios) for row in rows] == pytest.approx(np.subtract(mine, theirs).tolist(), abs=1e-3)
    kl = sequence_kl(policy, other, answers, PAD).tolist()
    assert [sum(row.token_kl) for row in rows] == pytest.approx(kl, abs=1e-3)
    assert min(kl) > 0.01
    assert [row.reference for row in rows[::2]] == [one["chosen"] for one in make_rows(7, groups=("a", "b"))[:4]]


def test_figures_of_answers() -> None:
    """Two judged answers and an unjudged one; rewards 1 and 3 on lengths 2 and 4: slope 1."""
    verdicts = [Verdict(1.0, 1.0, 0.0), Verdict(0.5, 3.0, 3.0, note=DISAGREE), Verdict(None, note="no")]
    rows = [
        AnswerRow(n, 0, "f", "p", f"answer {n}", "gold", 2 * n + 2, 2, n < 2, -1.0, [0.5], [0.25], verdict)
        for n, verdict in enumerate(verdicts)
    ]
    figures = answer_figures(rows)
    assert figures["length"] == {
        "tokens": 4.0,
        "reference_length": 2.0,
        "growth": 1.0,
        "longer": pytest.approx(2 / 3),
        "finished": pytest.approx(2 / 3),
    }
    assert figures["win"]["win_rate"] == 0.75
    assert (figures["win"]["unjudged"], figures["win"]["disagreed"]) == (1, 1)
    assert figures["reward"] == {
        "mean": 2.0,
        "error": pytest.approx(1.0),
        "length_pearson": pytest.approx(1.0),
        "length_spearman": pytest.approx(1.0),
        "length_slope": pytest.approx(1.0),
    }
    assert figures["kl"]["k1"] == 0.5
    assert figures["kl"]["exact"] == 0.25
    assert figures["diversity"]["unique"] == 1.0
    assert flat({"a": {"b": 1, "c": math.nan, "d": "text"}, "e": [1]}) == {"a/b": 1.0}


def test_only_judged_answers_count(caplog: pytest.LogCaptureFixture) -> None:
    row = AnswerRow(0, 0, "f", "p", "x", "y", 1, 1, True, -1.0, [], [], Verdict(None, note="no"))
    assert answer_figures([row])["win"] == {"unjudged": 1, "disagreed": 0}


def test_prompts_are_taken_once(tokenizer: Any) -> None:
    rows = make_rows(5)
    for one, other in ((1, 0), (3, 2)):
        rows[one]["prompt"] = rows[other]["prompt"]
    dataset = prepare(rows, tokenizer, progress=False).dataset
    assert first_of_each_prompt(dataset, 2) == [0, 2]
    assert first_of_each_prompt(dataset, 99) == [0, 2, 4]


def test_dialogues_stand_as_in_the_data(tmp_path: Path) -> None:
    """Messages stay messages, text stays text; the place is file and line."""
    rows: list[dict[str, Any]] = [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "chosen": [{"role": "assistant", "content": "Hello!"}],
            "rejected": [{"role": "assistant", "content": "?"}],
        },
        {"prompt": "Or?", "completion": "Yes.", "label": True},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_dialogues(str(path), {f"{path}:{line}" for line in (1, 2, 3, 9)})
    assert found == {
        f"{path}:1": ("Why?", "So."),
        f"{path}:2": ([{"role": "user", "content": "Hi"}], "Hello!"),
        f"{path}:3": ("Or?", "Yes."),
    }


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
        arguments = vars(_parser().parse_args(words))
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
