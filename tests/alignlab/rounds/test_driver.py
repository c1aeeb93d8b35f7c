"""A loop from end to end: what each stage leaves, and what is run again."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignlab.answers import read_answers
from alignlab.rounds import Rounds, round_rows
from alignlab.rounds.stages import Stage, all_stages
from alignlab.rounds.work import training_config
from alignlab.sampling.engine import SeededEngine


def quiet(_: str) -> None: ...


def test_two_rounds(loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage is whole; round 2 samples other prompts from the model of round 1; nothing is run twice."""
    rounds = Rounds.load(loop(stop={"patience": 5}))
    folder = rounds.run(quiet)
    assert [state for _, state in rounds.states()] == ["done"] * 11
    names = [str(stage) for stage, _ in rounds.states()]
    assert names == [
        "0/watch",
        *(f"{n}/{one}" for n in (1, 2) for one in ("sample", "judge", "pair", "train", "watch")),
    ]
    first, second = (list(read_answers(folder / f"round-0{n}" / "judge" / "answers.jsonl")) for n in (1, 2))
    assert len(first) == len(second) == 4
    assert not {row.prompt_id for row in first} & {row.prompt_id for row in second}
    assert [row.round for row in first + second] == [1] * 4 + [2] * 4
    assert first[0].model != second[0].model
    assert first[0].answers[0].scores["short"] == -len(first[0].answers[0].text)
    before = load_file(Path(rounds.loop.start) / "model.safetensors")
    models = [before, *(load_file(folder / f"round-0{n}" / "train" / "model.safetensors") for n in (1, 2))]
    assert all(not torch.equal(one["lm_head.weight"], two["lm_head.weight"]) for one, two in pairwise(models))
    rows = round_rows(rounds.loop)
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert rows[0]["watch"]["kl_start"] == 0.0
    assert rows[1]["watch"]["kl_start"] == rows[1]["watch"]["kl_previous"] > 0
    assert rows[2]["watch"]["kl_start"] != rows[2]["watch"]["kl_previous"]
    assert set(rows[1]["watch"]["scores"]) == {"short", "stopping"}
    page = (folder / "rounds.md").read_text()
    assert (
        "| round | held-out stopping | held-out short | KL to start | KL to round before | drawn short | pairs |"
        in page
    )
    monkeypatch.setattr(SeededEngine, "draw", lambda *_: pytest.fail("nothing is left to draw"))
    assert rounds.run(quiet) == folder


def test_what_was_made_of_something_else_is_not_overwritten(loop: Any, tmp_path: Path) -> None:
    Rounds.load(loop(rounds=1)).run(quiet)
    with pytest.raises(ValueError, match=r"round-01/sample was made of something else \(sample: .*; delete it"):
        Rounds.load(loop(rounds=1, sample={"samples": 2, "max_new_tokens": 6, "unfinished": "keep"})).run(quiet)
    (tmp_path / "judges.py").write_text("def short(prompt, answer):\n    return float(len(answer))\n")
    with pytest.raises(ValueError, match=r"round-01/judge was made of something else \(judges: "):
        Rounds.load(loop(rounds=1)).run(quiet)


def test_a_longer_loop_goes_on(loop: Any) -> None:
    folder = Rounds.load(loop(rounds=1)).run(quiet)
    trained = (folder / "round-01" / "train" / "model.safetensors").stat().st_mtime_ns
    Rounds.load(loop(rounds=2)).run(quiet)
    assert (folder / "round-01" / "train" / "model.safetensors").stat().st_mtime_ns == trained
    assert (folder / "round-02" / "train" / "stage.json").is_file()


def test_damage_is_seen_and_made_good(loop: Any) -> None:
    """A pair file that was changed is no longer what was written: pairs are made again, and the same."""
    rounds = Rounds.load(loop(rounds=1))
    folder = rounds.run(quiet)
    pairs = folder / "round-01" / "pair" / "pairs.jsonl"
    whole = pairs.read_bytes()
    pairs.write_bytes(whole[:-10])
    assert [str(stage) for stage, state in rounds.states() if state != "done"] == ["1/pair"]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("initial", "START"), ("previous", None), ({"ema": 0.5}, "round-02/reference")],
)
def test_references(reference: Any, expected: str | None, loop: Any) -> None:
    """The first round's reference is its own start, whatever is said; later ones as they are told."""
    rounds = Rounds.load(loop(reference=reference))
    found = {stage.round: training_config(stage) for stage in all_stages(rounds.loop) if stage.name == "train"}
    assert found[1].training.get("ref_model_name_or_path") is None
    path = found[2].training.get("ref_model_name_or_path")
    if expected == "START":
        assert path == rounds.loop.start
    else:
        assert path is None if expected is None else str(path).endswith(expected)
    assert found[2].model.name_or_path.endswith("round-01/train")


def test_a_reference_that_follows_is_an_average(loop: Any) -> None:
    """Round 2: half the start and half the model of round 1."""
    rounds = Rounds.load(loop(reference={"ema": 0.5}))
    folder = rounds.run(quiet)
    start = load_file(Path(rounds.loop.start) / "model.safetensors")
    first = load_file(folder / "round-01" / "train" / "model.safetensors")
    average = load_file(folder / "round-02" / "reference" / "model.safetensors")
    for name, one in average.items():
        torch.testing.assert_close(one, (start[name] + first[name]) / 2)


def test_which_pairs_are_trained_on(loop: Any, tmp_path: Path) -> None:
    mix = [{"path": str(tmp_path / "held.jsonl"), "weight": 0.5}]
    for accumulate, rounds_of in (("last", [3]), ("all", [1, 2, 3]), (2, [2, 3])):
        found = Rounds.load(
            loop(
                rounds=3, prompts={"path": str(tmp_path / "prompts.jsonl")}, data={"accumulate": accumulate, "mix": mix}
            )
        )
        parts = training_config(Stage(found.loop, 3, "train")).data.train
        assert [Path(str(part["path"])).parent.parent.name for part in parts[:-1]] == [f"round-0{n}" for n in rounds_of]  # type: ignore[index]
        assert parts[-1] == {"path": str(tmp_path / "held.jsonl"), "weight": 0.5}


def test_adapters_are_trained_further(loop: Any) -> None:
    """Two rounds with LoRA: the base stays the start, and round 2 goes on with the adapter of round 1."""
    values = loop()
    values["train"] = {**values["train"], "peft": {"r": 4, "target_modules": ["q_proj"]}}
    rounds = Rounds.load(values)
    folder = rounds.run(quiet)
    config = training_config(Stage(rounds.loop, 2, "train"))
    assert (config.model.name_or_path, config.peft) == (rounds.loop.start, None)
    assert config.model.adapter == str(folder / "round-01" / "train")
    one, two = (load_file(folder / f"round-0{n}" / "train" / "adapter_model.safetensors") for n in (1, 2))
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_spin_needs_no_judge(loop: Any) -> None:
    """Human answers over the model's own."""
    folder = Rounds.load(loop(rounds=1, judge={}, pair={"rule": "human_own", "per_prompt": 1})).run(quiet)
    rows = [json.loads(line) for line in (folder / "round-01" / "pair" / "pairs.jsonl").read_text().splitlines()]
    assert [row["origin"]["chosen"] for row in rows] == ["human"] * 4
    assert all(row["chosen"].startswith(" good") for row in rows)


def test_stages_one_by_one(loop: Any) -> None:
    """What launchers and Slurm jobs call: in order, and none before its time."""
    rounds = Rounds.load(loop(rounds=1))
    with pytest.raises(ValueError, match="--stage: 1/sample comes before 1/judge, and is not done"):
        rounds.run_stage("1/judge")
    with pytest.raises(
        ValueError, match="--stage: expected one of 1/sample, 1/judge, 1/pair, 1/train; found '2/train'"
    ):
        rounds.run_stage("2/train")
    for name in ("1/sample", "1/judge", "1/pair", "1/train"):
        assert rounds.run_stage(name)
    assert [state for _, state in rounds.states()] == ["done"] * 4
