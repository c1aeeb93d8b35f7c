"""Metrics of sampled answers during training: logged, judged, the same on two ranks, and without a trace in the run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows, make_tokenizer

from alignlab.config.arguments import PreferenceConfig
from alignlab.config.parser import write_yaml
from alignlab.config.run import load_config
from alignlab.training.trainer import PreferenceTrainer

JUDGE = "def letters(prompt, completion):\n    return completion.count('e') - len(prompt)\n"


def trainer(folder: Path, loss: str = "dpo", evaluation: Any = None, **options: Any) -> PreferenceTrainer:
    values: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "score_cache_dir": str(folder / "scores"),
        "max_steps": 2,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "eval_max_new_tokens": 8,
    }
    args = PreferenceConfig(**{**values, **options})
    rows = make_rows(12)
    held_out = evaluation if evaluation is not None else make_rows(5, seed=9)
    return PreferenceTrainer(make_model(), args, loss, rows, held_out, make_tokenizer())


def evaluations(run: PreferenceTrainer) -> list[dict[str, float]]:
    return [entry for entry in run.state.log_history if "eval_loss" in entry]


def generations(entry: dict[str, float]) -> dict[str, float]:
    return {name.split("generation/")[1]: value for name, value in entry.items() if "generation/" in name}


def test_metrics_stand_in_the_log_of_each_evaluation(tmp_path: Path) -> None:
    """The judge sees prompt and text of the data; a live reference gives the divergence, which grows from 0."""
    (tmp_path / "judge.py").write_text(JUDGE)
    judge = f"{tmp_path}/judge.py:letters"
    run = trainer(tmp_path, eval_generations=4, eval_judge=judge, reference="live", eval_on_start=True)
    run.train()
    first, _, last = (generations(entry) for entry in evaluations(run))
    for name in ("length", "distinct_2", "self_bleu", "kl", "kl_k1", "reward", "win_rate", "unjudged", "finished"):
        assert name in first, name
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert last["kl"] > 0.01
    assert first["unjudged"] == 0
    prompts = [len(str(row["prompt"])) for row in make_rows(5, seed=9)[:4]]
    assert -max(prompts) <= first["reward"] < 8 * 2  # letters e minus the prompt's length, of the data's own text
    assert run.evaluate()["eval_generation/kl"] == last["kl"], "the same seeds at every evaluation"


NOTING = """
import json, pathlib
def noting(prompt, completion):
    with pathlib.Path(__file__).with_name("seen.jsonl").open("a") as file:
        file.write(json.dumps([prompt, completion]) + "\\n")
    return 0.0
"""


@pytest.mark.parametrize("held_out", ["rows", "number", "sets"])
def test_the_judge_sees_the_data_as_it_stands(held_out: str, tmp_path: Path) -> None:
    """Prompt and chosen completion of the rows themselves: of one list, held out of training, or of two sets."""
    (tmp_path / "judge.py").write_text(NOTING)
    judge = f"{tmp_path}/judge.py:noting"
    options: dict[str, Any] = {"eval_generations": 3, "eval_judge": judge, "eval_strategy": "no"}
    rows = {"rows": make_rows(5, seed=9), "number": make_rows(12), "sets": make_rows(3, seed=7) + make_rows(3, seed=8)}
    sets = {"rows": None, "number": 4, "sets": {"one": make_rows(3, seed=7), "two": make_rows(3, seed=8)}}
    run = trainer(tmp_path, evaluation=sets[held_out], **options)
    run.evaluate()
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    chosen = {str(row["prompt"]): row["chosen"] for row in rows[held_out]}
    assert len({prompt for prompt, _ in seen}) == (6 if held_out == "sets" else 3)
    assert [completion for _, completion in seen[1::2]] == [chosen[prompt] for prompt, _ in seen[1::2]]
    assert [prompt for prompt, _ in seen[::2]] == [prompt for prompt, _ in seen[1::2]]


def test_generations_leave_the_run_as_it_is(tmp_path: Path) -> None:
    """Losses and weights are the same bit for bit with and without them."""
    runs = [trainer(tmp_path / str(count), eval_generations=count) for count in (0, 3)]
    for run in runs:
        run.train()
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in runs]
    assert losses[0] == losses[1]
    for one, other in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert generations(evaluations(runs[0])[0]) == {}
    assert "kl" not in generations(evaluations(runs[1])[0]), "a cached reference cannot score new answers"


def test_an_adapters_base_is_at_hand_as_the_reference(tmp_path: Path) -> None:
    from peft import LoraConfig

    args: dict[str, Any] = {"max_steps": 1, "eval_generations": 2, "reference": "adapter_off"}
    values: dict[str, Any] = {
        "output_dir": str(tmp_path / "run"),
        "eval_strategy": "no",
        "learning_rate": 5e-2,
        "disable_tqdm": True,
    }
    options = PreferenceConfig(**{**values, **args, "eval_max_new_tokens": 8, "save_strategy": "no"})
    peft = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear")
    run = PreferenceTrainer(
        make_model(), options, "dpo", make_rows(8), make_rows(3, seed=9), make_tokenizer(), peft_config=peft
    )
    run.train()
    assert run.evaluate()["eval_generation/kl"] > 1e-3


def test_labelled_losses_and_several_sets(tmp_path: Path) -> None:
    """KTO splits pairs; answers are held against the good half. Each set has its own metrics."""
    (tmp_path / "judge.py").write_text("def same(prompt, one, other):\n    return float('good' in one)\n")
    sets = {"one": make_rows(3, seed=5), "two": make_rows(4, seed=6)}
    judge = {"name": f"{tmp_path}/judge.py:same"}
    run = trainer(tmp_path, "kto", sets, eval_generations=2, eval_judge=judge, eval_strategy="no")
    metrics = run.evaluate()
    for name in ("one", "two"):
        assert metrics[f"eval_{name}_generation/win_rate"] == 0.0  # every reference says "good", no random answer does
    assert metrics["eval_one_generation/distinct_1"] != metrics["eval_two_generation/distinct_1"]


def test_a_judge_that_fails_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "judge.py").write_text("def broken(prompt, completion):\n    raise RuntimeError('no')\n")
    judge = f"{tmp_path}/judge.py:broken"
    run = trainer(tmp_path, eval_generations=2, eval_judge=judge, eval_strategy="no")
    with caplog.at_level(logging.WARNING):
        metrics = run.evaluate()
    assert "eval_judge: nothing was judged: RuntimeError: no" in caplog.text
    assert "eval_generation/win_rate" not in metrics
    assert metrics["eval_generation/length"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_judge": "x.py:f"}, "eval_judge: there is nothing to judge"),
        ({"eval_generations": 2, "eval_judge": "x.py:f"}, "judge.name: no file x.py"),
        ({"eval_generations": -1}, "eval_generations: expected at least 0, found -1"),
        ({"eval_generations": 2, "eval_judge": {"name": "http://h/v1", "modle": "m"}}, "judge.modle: unknown key"),
    ],
)
def test_mistakes_are_named_before_training(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options)


def test_there_must_be_rows_to_answer() -> None:
    model, data = {"name_or_path": "m"}, {"train": "t.jsonl"}
    with pytest.raises(ValueError, match="eval_generations: nothing to evaluate on"):
        load_config({"loss": {"name": "dpo"}, "model": model, "data": data, "eval_generations": 2})


def test_a_model_without_an_end_is_refused_at_the_start(tmp_path: Path) -> None:
    model: Any = make_model(eos_token_id=None)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    args = PreferenceConfig(output_dir=str(tmp_path), eval_generations=2)
    with pytest.raises(ValueError, match="no answer would ever end"):
        PreferenceTrainer(model, args, "sft", make_rows(4), make_rows(2), tokenizer)


@pytest.mark.slow
def test_two_ranks_log_what_one_process_does(tmp_path: Path) -> None:
    """Five prompts on two ranks, from YAML under torchrun: the same generation metrics after the same two steps."""
    (tmp_path / "judge.py").write_text(JUDGE)
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    for name, rows in (("train", make_rows(8)), ("eval", make_rows(5, seed=9))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "loss": {"name": "dpo"},
        "model": {"name_or_path": str(tmp_path / "model")},
        "data": {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")},
        "eval_judge": {"name": f"{tmp_path}/judge.py:letters"},
        "score_cache_dir": str(tmp_path / "scores"),
        "eval_generations": 5,
        "eval_max_new_tokens": 8,
        "reference": "live",
        "max_steps": 2,
        "learning_rate": 5e-3,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    (tmp_path / "run.yaml").write_text(write_yaml(values), encoding="utf-8")
    assert load_config(tmp_path / "run.yaml").training["eval_generations"] == 5
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = []
    for name, launcher, batch in (("one", [], 4), ("two", torchrun, 2)):
        words = [*launcher, "-m", "alignlab", "train", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / name)]
        words += ["--per_device_train_batch_size", str(batch)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(generations(json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))))
    assert found[0]["kl"] > 0.01
    assert found[1] == pytest.approx(found[0], abs=1e-4)
