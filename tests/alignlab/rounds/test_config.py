"""What a loop is told: mistakes are named before anything is opened."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from alignlab.checkpoints import write_whole
from alignlab.cli import main
from alignlab.config import find_config, write_yaml
from alignlab.rounds import Rounds, load_rounds, round_rows, table, write_chain
from alignlab.rounds.config import STOPPING
from alignlab.rounds.stages import Stage
from alignlab.rounds.watch import stopped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promts": 3}, r"promts: unknown key; did you mean prompts\?"),
        ({"sample": {"sampels": 3}}, r"sample\.sampels: unknown key; did you mean sample\.samples\?"),
        ({"rounds": 0}, "rounds: input should be greater than or equal to 1, found 0"),
        ({"reference": "start"}, r"reference: expected initial, previous or \{ema: NUMBER\}, .*; found 'start'"),
        ({"reference": {"ema": 2}}, r"reference: expected .* a number between 0 and 1; found \{'ema': 2\}"),
        ({"reference": {"emaa": 0.5}}, r"reference\.emaa: unknown key; did you mean reference\.ema\?"),
        ({"judge": {}}, r"judge: pair\.rule best_worst needs scores: name a judge"),
        ({"pair": {"rule": "best_wurst"}}, r"pair\.rule: expected one of .*; did you mean best_worst\?"),
        ({"pair": {"score": "other"}}, r"pair\.score: expected one of short, found 'other'"),
        ({"data": {"accumulate": 0}}, r"data\.accumulate: expected last, all or at least 1, found 0"),
        ({"data": {"accumulate": "lst"}}, "data.accumulate: expected last, all or a whole number .*; found 'lst'"),
        ({"data": {"accumulate": 2.5}}, "data.accumulate: expected last, all or a whole number .*; found 2.5"),
        ({"data": {"accumulate": True}}, "data.accumulate: expected last, all or a whole number .*; found True"),
        ({"data": {"mix": "more.jsonl"}}, r"data\.mix: expected a list of \{path, weight\}; found 'more\.jsonl'"),
        ({"data": {"mix": [{"pth": "x"}]}}, r"data\.mix\.0\.pth: unknown key; did you mean data\.mix\.0\.path\?"),
        ({"data": {"mix": [{"path": "x", "weight": 0}]}}, r"data\.mix\.0\.weight: .* greater than 0, found 0"),
        ({"prompts": "p.jsonl"}, r"prompts: expected a block \{path, per_round, repeat\}, found 'p\.jsonl'"),
        ({"pair": "best"}, r"pair: expected a block \{key: value\}, found 'best'"),
        ({"rounds": "3"}, "rounds: input should be a valid integer, found '3'"),
        ({"rounds": True}, "rounds: input should be a valid integer, found True"),
        ({"config": "nope.yaml"}, r"config: no config 'nope\.yaml'; shipped ones, .*dpo\.yaml"),
        ({"train": {"loss.betta": 1}}, r"train\.loss\.betta: there is no option 'betta'; did you mean beta\?"),
        ({"train": {"loss.beta": -1}}, r"^train\.loss\.beta must be"),
        ({"train": {"data": {"train": "x"}}}, r"train\.data\.train: the loop sets it itself"),
        ({"sample": {"engine": "continous"}}, r"sample\.engine: expected .*; did you mean continuous\?"),
        (
            {"sample": {"engine": {"name": "http://x/v1", "workers": "8"}}},
            r"sample\.engine\.workers: expected int, found '8'",
        ),
        (
            {"sample": {"engine": {"name": "http://x/v1", "modl": "x"}}},
            r"sample\.engine\.modl: unknown option of http://x",
        ),
        ({"start": ""}, "start: string should have at least 1 character, found ''"),
        ({"output_dir": ""}, "output_dir: string should have at least 1 character, found ''"),
        ({"judge": {"": "x.py:f"}}, r"judge\.?: string should have at least 1 character"),
        ({"judge": {"rm": ""}}, r"judge\.rm.*: string should have at least 1 character, found ''"),
        (
            {"pair": {"rule": "minimax"}},
            r"pair\.rule: minimax needs answers that were run against tests, .* best_worst,",
        ),
        ({"sample": {"samples": 1}}, r"sample\.samples: pair\.rule best_worst compares .* at least 2, found 1"),
        ({"train": {"model.adapter": "x"}}, r"train\.model\.adapter: answers are drawn from `start` as it is, .* 'x'"),
        ({"train": {"model": {"revision": "v2"}}}, r"train\.model\.revision: answers are drawn from `start`"),
        (
            {"train": {"reference": "none"}},
            r"train\.reference: found 'none', and the loop's is 'initial'; allowed: auto",
        ),
        (
            {"train": {"peft": {"r": 4}, "reference": "adapter_off"}, "reference": "previous"},
            r"train\.reference: found 'adapter_off', and the loop's is 'previous'",
        ),
        ({"train": {"ref_adapter": "x"}}, r"train\.ref_adapter: the loop sets it itself"),
        ({"train": {"resume_from_checkpoint": "x"}}, r"train\.resume_from_checkpoint: the loop sets it itself"),
        ({"train": {"output_dir": "x"}}, r"train\.output_dir: the loop sets it itself"),
        ({"train": {"learning_rat": 1}}, r"train\.learning_rat: unknown key; did you mean learning_rate"),
        ({"pair": {"min_margn": 1}}, r"pair\.min_margn: unknown key; did you mean pair\.min_margin\?"),
        ({"pair": {"min_margin": "0.1"}}, r"pair\.min_margin: expected .*, found '0\.1'"),
        ({"train": {"loss": {"name": "bradley_terry"}}}, "loss: it trains a reward model"),
        ({"stop": {}}, r"stop: by what\? give stop\.patience or stop\.max_kl"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, loop: Any) -> None:
    with pytest.raises(ValueError, match=message):
        load_rounds(loop(**changes))


LISTS = {"name": "plackett_luce"}


@pytest.mark.parametrize(
    ("rule", "loss", "message"),
    [
        (
            "lists",
            {"name": "dpo"},
            "lists gives lists of answers, and the loss dpo needs pairs; allowed with it: best_worst",
        ),
        (
            "lists",
            {"name": "kto"},
            "lists gives lists of answers, and the loss kto needs single answers; .*: best, or a",
        ),
        ("best_worst", LISTS, "best_worst gives pairs, and the loss plackett_luce needs lists of answers; .*: lists$"),
        ("best", {"name": "dpo"}, "best gives single answers, and the loss dpo needs pairs"),
        ("human_own", {"name": "odpo"}, "human_own gives pairs without scores, and the loss odpo reads "),
    ],
)
def test_rows_that_the_loss_does_not_read(rule: str, loss: dict[str, Any], message: str, loop: Any) -> None:
    """Else the data room would read lists as pairs and pairs as lists of two, by a choice that is not ``pair``'s."""
    values = loop(pair={"rule": rule})
    values["train"] = {**values["train"], "loss": loss}
    with pytest.raises(ValueError, match=rf"^pair\.rule: {message}"):
        load_rounds(values)


@pytest.mark.parametrize(
    ("rule", "loss"),
    [("lists", LISTS), ("best_worst", {"name": "kto"}), ("best", {"name": "sft", "data": "labelled"})],
)
def test_rows_that_the_loss_reads(rule: str, loss: dict[str, Any], loop: Any) -> None:
    values = loop(pair={"rule": rule})
    values["train"] = {**values["train"], "loss": loss}
    assert load_rounds(values).pair_options().rule == rule


def test_a_gold_answer_is_asked_for_where_the_loss_reads_one(loop: Any) -> None:
    values = loop()
    values["train"] = {**values["train"], "loss": {"name": "tpo"}}
    with pytest.raises(ValueError, match=r"pair\.gold: the loss tpo needs a gold answer in every pair; found false"):
        load_rounds(values)
    assert load_rounds(values | {"pair": {"gold": True}}).pair_options().gold


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompts": {"path": "FOLDER/none.jsonl"}},
            r"prompts\.path: FOLDER/none\.jsonl: no such file or folder; allowed are",
        ),
        ({"data": {"mix": [{"path": "FOLDER/none.jsonl"}]}}, r"data\.mix\.0\.path: FOLDER/none\.jsonl: no such file"),
        ({"stop": {"patience": 1, "prompts": "FOLDER/none.jsonl"}}, r"stop\.prompts: FOLDER/none\.jsonl: no such file"),
        ({"judge": {"rm": "FOLDER/none.py:short"}}, r"judge\.rm\.name: no file FOLDER/none\.py"),
        (
            {"judge": {"rm": "FOLDER/judges.py:shrt"}},
            r"judge\.rm\.name: FOLDER/judges\.py has no function 'shrt'; found short,",
        ),
        (
            {"judge": {"rm": {"name": "FOLDER/judges.py:short", "dtype": "auto"}}},
            r"judge\.rm\.dtype: a function takes no",
        ),
        (
            {"judge": {"rm": {"nme": "x"}}},
            r"judge\.rm\.name: expected file\.py:function, a model's path or .*, found None",
        ),
        ({"judge": {"rm": "FOLDER/none"}}, r"judge\.rm: the model of 'FOLDER/none' cannot be loaded: there is no such"),
        (
            {"judge": {"rm": {"name": "FOLDER/none", "dtyp": "auto"}}},
            r"judge\.rm\.dtyp: unknown key; did you mean judge\.rm\.dtype",
        ),
        ({"judge": {"rm": "MODEL"}}, r"judge\.rm: MODEL has 2 outputs; a reward model has one"),
        ({"stop": {"patience": 1, "judge": "FOLDER/judges.py:no"}}, r"stop\.judge\.name: .* has no function 'no'"),
        ({"start": "FOLDER/none"}, r"start: the tokenizer of 'FOLDER/none' cannot be loaded: there is no such folder"),
        ({"train": {"deepspeed": "zero9.json"}}, r"train\.deepspeed: no config 'zero9\.json'"),
        (
            {"train": {"data.eval": ["FOLDER/no.jsonl"], "data.eval_rows": None}},
            r"train\.data\.eval: FOLDER/no\.jsonl: no such",
        ),
        ({"launcher": "torchrnu -m"}, r"launcher: no program 'torchrnu' on PATH"),
        ({"launcher": "torchrun '"}, r"launcher: No closing quotation, found"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_computed(
    changes: dict[str, Any], message: str, loop: Any, tmp_path: Path, model_path: Path
) -> None:
    def put(text: str, by: Any = str) -> str:
        return text.replace("FOLDER", by(str(tmp_path))).replace("MODEL", by(str(model_path)))

    rounds = Rounds.load(loop(**json.loads(put(json.dumps(changes)))))
    with pytest.raises(ValueError, match=f"^{put(message, re.escape)}"):
        rounds.run(lambda _: None)
    assert not rounds.loop.folder.exists()


def test_people_answered_where_spin_wants_them_to(loop: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    values = loop(judge={}, pair={"rule": "human_own"}, prompts={"path": str(tmp_path / "prompts.jsonl")})
    with pytest.raises(ValueError, match=r"^prompts\.path: pair\.rule human_own .* none of 2 prompts in .* has one;"):
        Rounds.load(values).check()


@pytest.mark.parametrize("words", [["--dry-run"], ["--slurm", "job.sbatch", "--submit"]])
def test_nothing_is_submitted_of_a_loop_that_cannot_run(
    words: list[str], loop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop.yaml").write_text(write_yaml(loop(judge={"rm": f"{tmp_path}/judges.py:shrt"})))
    assert main(["rounds", str(tmp_path / "loop.yaml"), *words]) == 2
    assert "judge.rm.name: " in capsys.readouterr().err
    assert not (tmp_path / "rounds").exists()


def test_what_decides_is_neither_trained_on_nor_ranks(loop: Any, tmp_path: Path) -> None:
    judge = f"{tmp_path / 'judges.py'}:short"
    with pytest.raises(ValueError, match=r"stop\.judge: it is the judge that ranks, whose mistakes it would share"):
        load_rounds(loop(stop={"patience": 1, "judge": judge}))
    with pytest.raises(ValueError, match=r"stop\.prompts: they are trained on"):
        load_rounds(loop(stop={"patience": 1, "prompts": str(tmp_path / "prompts.jsonl")}))
    rows = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "held.jsonl").write_text(rows[0] + "\n" + json.dumps({"prompt": "another"}) + "\n")
    with pytest.raises(ValueError, match=r"stop\.prompts: 1 of 2 prompts stand in .* and would be trained on"):
        Rounds.load(loop(stop={"patience": 1})).run(lambda _: None)


@pytest.mark.parametrize("spelled", ["{}/./judges.py:short", {"name": "{}/judges.py:short"}])
def test_the_judge_that_ranks_is_known_however_it_is_written(spelled: Any, loop: Any, tmp_path: Path) -> None:
    judge = spelled.format(tmp_path) if isinstance(spelled, str) else {"name": spelled["name"].format(tmp_path)}
    with pytest.raises(ValueError, match=r"stop\.judge: it is the judge that ranks"):
        load_rounds(loop(stop={"patience": 1, "judge": judge}))


def test_the_judge_that_ranks_is_the_one_that_pairs_are_made_by(loop: Any, tmp_path: Path) -> None:
    """With ``pair.score`` the second judge ranks: it may not stop, and the first may."""
    one, two = (f"{tmp_path / 'judges.py'}:{name}" for name in ("short", "letters"))
    told = {"judge": {"one": one, "two": two}, "pair": {"score": "two"}}
    with pytest.raises(ValueError, match=r"stop\.judge: it is the judge that ranks"):
        load_rounds(loop(stop={"patience": 1, "judge": two}, **told))
    assert load_rounds(loop(stop={"patience": 1, "judge": one}, **told)).pair_options().score == "two"


def test_no_judge_takes_the_name_of_the_one_that_stops(loop: Any, tmp_path: Path) -> None:
    """Its scores would go over those of the judge that stops."""
    with pytest.raises(ValueError, match=r"judge\.stopping: that is what the judge that stops is called"):
        load_rounds(loop(stop={"patience": 1}, judge={STOPPING: f"{tmp_path / 'judges.py'}:short"}))


def test_prompts_that_decide_are_not_mixed_in_nor_trained_on_by_single_stages(loop: Any, tmp_path: Path) -> None:
    held = str(tmp_path / "held.jsonl")
    with pytest.raises(ValueError, match=r"stop\.prompts: 4 of 4 prompts stand in .*held\.jsonl too"):
        Rounds.load(loop(stop={"patience": 1}, data={"mix": [{"path": held}]})).run(lambda _: None)
    rows = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "held.jsonl").write_text(rows[0] + "\n")
    with pytest.raises(ValueError, match=r"stop\.prompts: 1 of 1 prompts stand in .*prompts\.jsonl too"):
        Rounds.load(loop(stop={"patience": 1})).run_stage("0/watch")


def test_prompts_that_run_out_are_said_before_the_first_round(loop: Any, tmp_path: Path) -> None:
    prompts = {"path": str(tmp_path / "prompts.jsonl"), "per_round": 5}
    with pytest.raises(ValueError, match=r"prompts\.per_round: 2 rounds of 5 are 10 prompts, and .* has 8; take fewer"):
        Rounds.load(loop(prompts=prompts)).run(lambda _: None)


def test_a_reference_of_the_config_is_not_taken_for_the_loops(loop: Any, tmp_path: Path, model_path: Path) -> None:
    text = find_config("dpo.yaml").read_text() + f"\nref_model_name_or_path: {model_path}\n"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"ref_model_name_or_path: .*mine\.yaml sets it, and the loop sets it itself"):
        load_rounds(loop(config=str(tmp_path / "mine.yaml")))


def test_pairs_are_stale_where_another_judge_ranks_or_another_seed_draws(loop: Any, tmp_path: Path) -> None:
    """Neither the order of judges nor options that ``pair`` sets over the loop's own escape the stage's manifest."""
    one, two = (f"{tmp_path / 'judges.py'}:{name}" for name in ("short", "letters"))
    stage = Stage(load_rounds(loop(judge={"one": one, "two": two})), 1, "pair")
    stage.folder.mkdir(parents=True)
    stage.made.finish([])
    assert stage.is_done()
    changes: list[dict[str, Any]] = [
        {"judge": {"two": two, "one": one}},
        {"pair": {"seed": 5}},
        {"pair": {"unfinished": "drop"}},
    ]
    for change in changes:
        other = load_rounds(loop(**{"judge": {"one": one, "two": two}, **change}))
        with pytest.raises(ValueError, match=r"round-01/pair was made of something else \(pair: "):
            Stage(other, 1, "pair").is_done()


def test_stages_are_stale_where_the_base_of_an_adapter_is_another(loop: Any, tmp_path: Path, model_path: Path) -> None:
    """Of a judge and of the start: both may be adapters, whose base lies in another folder."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(model_path, base)
    adapter.mkdir()
    LoraConfig(base_model_name_or_path=str(base), task_type="CAUSAL_LM").save_pretrained(str(adapter))
    asked = load_rounds(loop(start=str(adapter), judge={"one": str(adapter)}))
    for name, key in (("sample", "model"), ("judge", "judges")):
        stage = Stage(asked, 1, name)
        stage.folder.mkdir(parents=True)
        stage.made.finish([])
        assert stage.is_done()
        config = (base / "config.json").read_text()
        (base / "config.json").write_text(config + " ")
        with pytest.raises(ValueError, match=rf"round-01/{name} was made of something else \({key}: "):
            stage.is_done()
        (base / "config.json").write_text(config)
        assert stage.is_done()


def test_averages_need_whole_models_and_a_loss_that_reads_them(loop: Any) -> None:
    values = loop(reference={"ema": 0.5})
    values["train"] = {**values["train"], "peft": {"r": 4}}
    with pytest.raises(ValueError, match=r"reference: \{ema\} cannot work here: its weights would be averaged"):
        load_rounds(values)
    values = loop(reference={"ema": 0.5})
    values["train"] = {**values["train"], "loss": {"name": "simpo"}}
    with pytest.raises(ValueError, match=r"reference: \{ema\} cannot work here: the loss reads none"):
        load_rounds(values)


def test_overrides_and_yaml_go_round(loop: Any, tmp_path: Path) -> None:
    found = load_rounds(loop(), [("sample.samples", "5"), ("reference", "{ema: 0.25}"), ("train.seed", "3")])
    assert (found.sample.samples, found.train["seed"]) == (5, 3)
    (tmp_path / "loop.yaml").write_text(found.to_yaml())
    assert load_rounds(tmp_path / "loop.yaml") == found


# ---- stopping ----------------------------------------------------------------------------------------------------


def watched(loop: Any, means: list[float | None], kls: list[float], **stop: Any) -> list[str]:
    """Returns why the loop ends after each round, given what the watches say."""
    found = load_rounds(loop(rounds=9, stop=stop))
    for number, (mean, kl) in enumerate(zip(means, kls, strict=True)):
        stage = Stage(found, number, "watch")
        stage.folder.mkdir(parents=True, exist_ok=True)
        scores = {STOPPING: {"mean": mean, "error": 0.1, "unjudged": 0}}
        stage.made.finish([], {"scores": scores, "kl_start": kl, "kl_previous": kl, "tokens": 5.0})
    return [stopped(found, number) for number in range(len(means))]


def test_patience(loop: Any) -> None:
    """The best is round 1; two rounds later patience 2 is over."""
    found = watched(loop, [0.0, 2.0, 1.0, 1.5], [0, 1, 2, 3], patience=2)
    assert found == ["", "", "", "the best held-out score, 2.000, is that of round 1, 2 rounds ago"]


def test_too_far_from_the_start(loop: Any) -> None:
    found = watched(loop, [0.0, 1.0, 2.0], [0.0, 1.0, 4.5], max_kl=4)
    assert found == ["", "", "KL to the start is 4.50 nats an answer, over stop.max_kl 4"]


def test_an_unjudged_round_is_no_better_one(loop: Any) -> None:
    found = watched(loop, [1.0, None], [0, 1], patience=1)
    assert found[1] == "the best held-out score, 1.000, is that of round 0, 1 rounds ago"


def test_the_table_leaves_out_what_nobody_measured(loop: Any) -> None:
    watched(loop, [1.0, 2.0], [0.0, 1.25], patience=5)
    header, *lines = table(round_rows(load_rounds(loop(rounds=9, stop={"patience": 5}))))
    assert header == ["round", "held-out stopping", "KL to start", "KL to round before", "tokens"]
    assert lines[1] == ["1", "+2.000 ± 0.100", "1.25", "1.25", "5.0"]


# ---- Slurm -------------------------------------------------------------------------------------------------------


def test_a_chain_of_jobs(loop: Any, tmp_path: Path) -> None:
    """Each job waits for the one before; sampling and judging are arrays, pairs one process's work."""
    template = tmp_path / "job.sbatch"
    write_whole(template, "#!/bin/bash\n#SBATCH --nodes=1\n")
    script = write_chain(load_rounds(loop(stop={"patience": 5})), template, ["--partition=gpu"], array=4).read_text()
    jobs = [line for line in script.splitlines() if line.startswith("submit ") and "()" not in line]
    assert jobs[:4] == [
        "submit 0/watch '' --partition=gpu",
        "submit 1/sample 0-3 --partition=gpu",
        "submit 1/judge 0-3 --partition=gpu",
        "submit 1/pair '' --partition=gpu --nodes=1 --ntasks=1",
    ]
    assert len(jobs) == 11
    assert "--dependency=afterok:$before" in script
    with pytest.raises(FileNotFoundError, match="--slurm: no template"):
        write_chain(load_rounds(loop()), tmp_path / "none.sbatch")


def test_the_chain_hands_each_job_to_sbatch_behind_the_one_before(
    loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pretend sbatch that numbers jobs: the third one waits for the second."""
    import os
    import subprocess

    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    counter = tmp_path / "count"
    fake.write_text(f'#!/bin/bash\necho "$STAGE $TASK $*" >> {counter}\nwc -l < {counter}\n')
    fake.chmod(0o755)
    template = tmp_path / "job.sbatch"
    template.write_text("#!/bin/bash\n#SBATCH --nodes=1\n")
    script = write_chain(load_rounds(loop()), template, array=2)
    env = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[:3] == ["1/sample 1", "1/judge 2", "1/pair 3"]
    lines = counter.read_text().splitlines()
    assert lines[0].startswith("1/sample rounds --parsable --job-name=rounds-1-sample --array=0-1 ")
    assert "--dependency=afterok:2 --kill-on-invalid-dep=yes --nodes=1 --ntasks=1" in lines[2]
