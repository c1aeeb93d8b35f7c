"""What a loop is told: mistakes are named before anything is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignlab.checkpoints import write_whole
from alignlab.config import find_config
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
        ({"reference": "start"}, "reference"),
        ({"reference": {"ema": 2}}, "reference"),
        ({"judge": {}}, r"judge: pair\.rule best_worst needs scores: name a judge"),
        ({"pair": {"rule": "best_wurst"}}, r"pair\.rule: expected one of .*; did you mean best_worst\?"),
        ({"pair": {"score": "other"}}, r"pair\.score: expected one of short, found 'other'"),
        ({"data": {"accumulate": 0}}, r"data\.accumulate: expected last, all or at least 1, found 0"),
        ({"sample": {"engine": "continous"}}, r"sample\.engine: expected .*; did you mean continuous\?"),
        ({"train": {"output_dir": "x"}}, r"train\.output_dir: the loop sets it itself"),
        ({"train": {"learning_rat": 1}}, "learning_rat: unknown key; did you mean learning_rate"),
        ({"pair": {"min_margn": 1}}, r"pair\.min_margn: unknown key; did you mean pair\.min_margin\?"),
        ({"pair": {"min_margin": "0.1"}}, r"pair\.min_margin: expected .*, found '0\.1'"),
        ({"train": {"loss": {"name": "bradley_terry"}}}, "loss: it trains a reward model"),
        ({"stop": {}}, r"stop: by what\? give stop\.patience or stop\.max_kl"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, loop: Any) -> None:
    with pytest.raises(ValueError, match=message):
        load_rounds(loop(**changes))


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
    assert lines[0].startswith("1/sample rounds --parsable --job-name=rounds-1/sample --array=0-1 ")
    assert "--dependency=afterok:2 --kill-on-invalid-dep=yes --nodes=1 --ntasks=1" in lines[2]
