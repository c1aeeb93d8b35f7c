"""Two real ranks under every engine train each of the seven losses as one process does, metrics included."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import engine_ranks
import pytest
import torch
from engine_ranks import LOSSES, STEPS
from launching import DEEPSPEED, TORCHRUN, launch
from safetensors.torch import load_file

from alignlab.config.arguments import PreferenceConfig
from alignlab.training.trainer import PreferenceTrainer

# What differs from run to run, or says how rows were laid out on the ranks.
NOT_COMPARED = ("step", "epoch", "learning_rate", "padding", "grad_norm", "per_second", "runtime", "memory/")
Log = list[dict[str, float]]


def log_of(run: Path) -> Log:
    """Returns the logged values of each step, and of the evaluation at the end."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [
        {key: value for key, value in entry.items() if not any(part in key for part in NOT_COMPARED)}
        for entry in history
        if "loss" in entry or "eval_loss" in entry
    ]


def engine_of(run: Path) -> dict[str, Any]:
    engine: dict[str, Any] = json.loads((run / "environment.json").read_text())["engine"]
    return engine


QLORA = {
    "model": {"load_in_4bit": True},
    "peft": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "learning_rate": 5e-3,
}
EXPERTS = {"of": "dpo", "name": "experts", "model": {"name_or_path": "experts"}, "router_aux_loss_coef": 0.5}
LISTS = {"of": "plackett_luce", "name": "lists"}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 6, "max_steps": 12, "weight_decay": 0.1}
RESUMED = {**CHECKPOINTS, "of": "group_robust", "lr_scheduler_type": "linear"}
TORCHRUN_ONE = [*TORCHRUN[:-1], "1"]
ENGINES: dict[str, tuple[list[str], int | None, dict[str, Any]]] = {
    "ddp": (TORCHRUN, None, {}),
    "zero1": (TORCHRUN, 1, {"gradient_accumulation_steps": 2}),
    "zero2": (DEEPSPEED, 2, {}),
    "zero3": (TORCHRUN, 3, {"chunked": True}),
    "zero2_offload": (TORCHRUN, 2, {}),
    "zero3_offload": (TORCHRUN, 3, {}),
}
LAUNCHES = (("ddp", "zero1", "zero2_offload"), ("zero2",), ("zero3", "zero3_offload"))
MORE: dict[str, list[dict[str, Any]]] = {  # what else is run where the libraries are imported already
    "one": [*({"of": loss, "name": f"qlora_{loss}", **QLORA} for loss in ("dpo", "kto")), EXPERTS, LISTS],
    "ddp": [EXPERTS, LISTS, {"of": "tdpo", "name": "reference_offloaded", "reference_deepspeed": "zero3_offload.json"}],
    "zero2": [
        *({"of": loss, "name": f"qlora_{loss}", **QLORA} for loss in ("dpo", "kto")),
        {**RESUMED, "name": "whole"},
        EXPERTS,
        LISTS,
    ],
    "zero3": [
        *({"of": loss, "name": f"qlora_{loss}", **QLORA} for loss in ("dpo", "kto")),
        {**RESUMED, "name": "whole"},
        {"of": "tdpo", "name": "reference_sharded", "reference_deepspeed": "zero3.json"},
        {"of": "tdpo", "name": "reference_cached", "reference_deepspeed": "zero3.json", "reference": "cached"},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and rows, and the runs of one process."""
    path = tmp_path_factory.mktemp("engines")
    engine_ranks.prepare(path)
    launch([sys.executable], path, path / "one", [*({"of": loss} for loss in LOSSES), *MORE["one"]])
    return path


def runs_of(engine: str) -> list[dict[str, Any]]:
    """All losses and what else is run under an engine, each in the engine's folder."""
    _, stage, changes = ENGINES[engine]
    config = {} if stage is None else {"deepspeed": f"{engine}.json"}
    runs = [*({"of": loss, **changes} for loss in LOSSES), *MORE.get(engine, [])]
    return [{**one, **config, "name": f"{engine}/{one.get('name', one['of'])}"} for one in runs]


@pytest.fixture(scope="module")
def launched(folder: Path) -> Callable[[str], Path]:
    """Runs all losses under an engine, once, and those that share its launch; returns the folder of the runs."""

    @cache
    def run(engines: tuple[str, ...]) -> None:
        (words,) = {tuple(ENGINES[engine][0]) for engine in engines}
        launch([*words], folder, folder, [one for engine in engines for one in runs_of(engine)])

    def folder_of(engine: str) -> Path:
        (engines,) = [one for one in LAUNCHES if engine in one]
        run(engines)
        return folder / engine

    return folder_of


def assert_same_losses(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    expected, found = ([entry["loss"] for entry in log_of(run) if "loss" in entry] for run in (one, other))
    assert len(found) == len(expected)
    assert found == pytest.approx(expected, abs=tolerance), other
    assert max(expected) - min(expected) > 0.1, f"{one}: the trajectory moves"


@pytest.mark.parametrize("engine", ENGINES)
def test_seven_losses_on_two_ranks_equal_one_process(
    engine: str, folder: Path, launched: Callable[[str], Path]
) -> None:
    """Twenty steps within 1e-4, every metric of every step within 1e-4 of its size; the last step is uneven.

    21 rows in steps of 4: at the end of each epoch one rank runs a filler; most of its steps lack a group, or a label.
    Under ZeRO-3 the LM head runs in chunks, on weights that are gathered for it.
    """
    out, stage = launched(engine), ENGINES[engine][1]
    name = "DistributedDataParallel" if stage is None else "DeepSpeedEngine"
    for loss in LOSSES:
        assert engine_of(out / loss) == {"class": name, "zero_stage": stage, "ranks": 2}, loss
        assert_same_losses(folder / "one" / loss, out / loss)
        one, two = log_of(folder / "one" / loss), log_of(out / loss)
        assert len(one) == STEPS + 1
        for step, (expected, found) in enumerate(zip(one, two, strict=True)):
            assert found == pytest.approx(expected, abs=1e-4, rel=1e-4), (loss, step)


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_lists_on_two_ranks_equal_one_process(engine: str, folder: Path, launched: Callable[[str], Path]) -> None:
    """Lists of 2, 3 and 4, of which each rank's micro-batch has holes of its own; every metric as of one process."""
    out = launched(engine)
    assert_same_losses(folder / "one" / "lists", out / "lists")
    one, two = log_of(folder / "one" / "lists"), log_of(out / "lists")
    assert {"rewards/top1", "rewards/ndcg"} <= one[0].keys()
    for step, (expected, found) in enumerate(zip(one, two, strict=True)):
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4), step


@pytest.mark.parametrize("engine", ENGINES)
def test_the_reference_has_one_fingerprint_under_every_engine(
    engine: str, folder: Path, launched: Callable[[str], Path]
) -> None:
    """On shards, too, it is the hash of the real weights, so scores made under one engine serve all."""
    one, found = (
        {path.parent.name for path in (run / "scores").glob("*/meta.json")}
        for run in (folder / "one", launched(engine))
    )
    assert len(one) == 3, "the model, its 4-bit form, and the mixture of experts"
    assert len(found) == {"ddp": 2, "zero2": 3, "zero3": 2}.get(engine, 1)
    assert found <= one


def test_rows_are_packed_under_zero3(launched: Callable[[str], Path]) -> None:
    """The probe runs on a small twin; no position of a pair's rows is padding."""
    for loss in ("dpo", "tdpo", "modpo"):
        history = json.loads((launched("zero3") / loss / "trainer_state.json").read_text())["log_history"]
        assert {entry["padding"] for entry in history if "padding" in entry} == {0.0}


@pytest.mark.parametrize(
    ("engine", "name"), [("ddp", "reference_offloaded"), ("zero3", "reference_sharded"), ("zero3", "reference_cached")]
)
def test_a_reference_sharded_by_its_own_setting_scores_the_same(
    engine: str, name: str, folder: Path, launched: Callable[[str], Path]
) -> None:
    """Whatever the policy's engine; that all its weights are sharded is checked where it is loaded."""
    assert_same_losses(folder / "one" / "tdpo", launched(engine) / name)


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_qlora_on_two_ranks_equals_one_process(
    loss: str, engine: str, folder: Path, launched: Callable[[str], Path]
) -> None:
    """Within 1e-4: the adapter is float32 and the 4-bit base is never changed, so only the order of sums differs."""
    assert_same_losses(folder / "one" / f"qlora_{loss}", launched(engine) / f"qlora_{loss}")


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_the_load_balance_of_experts_is_that_of_one_process(
    engine: str, folder: Path, launched: Callable[[str], Path]
) -> None:
    """The auxiliary loss at half weight, its mean over the tokens of both ranks; one rank runs fillers at times."""
    one, two = folder / "one" / "experts", launched(engine) / "experts"
    assert_same_losses(one, two)
    balance = [[entry["aux_loss"] for entry in log_of(run) if "aux_loss" in entry] for run in (one, two)]
    assert len(balance[0]) == STEPS
    assert balance[1] == pytest.approx(balance[0], abs=1e-5)


@pytest.mark.parametrize("engine", ["zero3", "zero3_offload"])
def test_the_model_saved_under_zero3_loads_alone_and_scores_as_in_memory(
    engine: str, folder: Path, launched: Callable[[str], Path], tmp_path: Path
) -> None:
    """Metrics of the evaluation at the end of training are those of the saved files in one process."""
    run = launched(engine) / "dpo"
    rows = {name: f"{folder}/{name}_pairs.jsonl" for name in ("train", "eval")}
    args = PreferenceConfig(
        output_dir=str(tmp_path),
        ref_model_name_or_path=str(folder / "model"),
        score_cache_dir=str(folder / "one" / "scores"),
        use_cpu=True,
    )
    alone = PreferenceTrainer(str(run), args, "dpo", rows["train"], rows["eval"]).evaluate()
    for key, value in log_of(run)[-1].items():
        assert alone[key] == pytest.approx(value, abs=1e-5, rel=1e-5), key


def test_resume_on_another_number_of_ranks_continues_the_trajectory(
    folder: Path, launched: Callable[[str], Path]
) -> None:
    """Six steps on two ranks and six on one, and the other way round: an uninterrupted run's losses within 1e-5."""
    alone, pair = folder / "alone", folder / "pair"
    stages = {stage: {**RESUMED, "deepspeed": f"zero{stage}.json"} for stage in (2, 3)}

    def half(whole: Path, out: Path) -> None:
        shutil.copytree(whole, out)
        shutil.rmtree(out / "checkpoint-12")
        (out / "metrics.json").unlink()  # a finished run would not go on

    for stage in stages:
        half(launched(f"zero{stage}") / "whole", alone / f"resumed{stage}")
    auto = {"resume_from_checkpoint": "auto"}
    runs = [{**changes, "name": f"resumed{stage}", **auto} for stage, changes in stages.items()]
    said = launch(TORCHRUN_ONE, folder, alone, [*runs, *({**c, "name": f"whole{s}"} for s, c in stages.items())])
    assert said.count("it is converted first") == 2
    for stage in stages:
        half(alone / f"whole{stage}", pair / f"resumed{stage}")
    assert launch(TORCHRUN, folder, pair, runs).count("it is converted first") == 2
    for stage in stages:
        for ranks, out, whole in (
            (1, alone, folder / f"zero{stage}" / "whole"),
            (2, pair, alone / f"whole{stage}"),
        ):
            run = out / f"resumed{stage}"
            assert engine_of(run) == {"class": "DeepSpeedEngine", "zero_stage": stage, "ranks": ranks}
            assert len([entry for entry in log_of(run) if "loss" in entry]) == 12
            assert_same_losses(whole, run, 1e-5)
            weights = [load_file(path / "model.safetensors") for path in (whole, run)]
            for key, value in weights[0].items():
                torch.testing.assert_close(weights[1][key], value, rtol=0, atol=1e-5)
            assert not list(run.glob(".universal*")), "the converted checkpoint is gone"


def test_what_changes_a_run_is_applied_to_a_zero_checkpoint(
    folder: Path, launched: Callable[[str], Path], tmp_path: Path
) -> None:
    """Half the learning rate from step 7 on, of a linear schedule over 12: 6/12, 5/12, ... of the new rate."""
    run = tmp_path / "changed"
    shutil.copytree(launched("zero2") / "whole", run)
    shutil.rmtree(run / "checkpoint-12")
    (run / "metrics.json").unlink()
    changes = {"learning_rate": 5e-4, "resume_with_changes": True, "resume_from_checkpoint": "auto"}
    said = launch(TORCHRUN_ONE, folder, tmp_path, [{**RESUMED, "deepspeed": "zero2.json", **changes, "name": run.name}])
    assert "changes the run  learning_rate: 0.001 -> 0.0005" in said
    assert "the learning rate of step 7 is 0.00025; it was to be 0.0005" in said
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    rates = {entry["step"]: entry["learning_rate"] for entry in history if entry["step"] > 6 and "loss" in entry}
    assert rates == pytest.approx({step: 5e-4 * (13 - step) / 12 for step in range(7, 13)}, rel=1e-9)
