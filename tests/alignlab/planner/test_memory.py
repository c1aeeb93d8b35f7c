"""The planner: its arithmetic is ZeRO's and that of the caches, and real runs take what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from making import NEWER_CHECKPOINTING

from alignlab.cli import main
from alignlab.config.automatic import checkpoints_activations
from alignlab.config.run import RunConfig, load_config
from alignlab.planner import plan
from alignlab.planner.fitting import _changes
from alignlab.planner.memory import estimate
from alignlab.planner.micro_batch import Lengths, reference_mode

ROOT = Path(__file__).resolve().parents[3]
newer_checkpointing: pytest.MarkDecorator = NEWER_CHECKPOINTING
# Embedding and head 300 x 32 each; of two layers: q, o 32 x 32, k, v 32 x 16, three of 32 x 64, two norms; a last norm.
PARAMETERS = 2 * 300 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32


@pytest.fixture
def config(model_path: Path, tmp_path: Path) -> Any:
    """Loads the tiny run with overrides."""
    values = {
        "loss": {"name": "dpo"},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": "nowhere.jsonl"},
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "max_length": 64,
    }

    def load(*words: str) -> RunConfig:
        return load_config(values, list(words))

    return load


def parts(config: RunConfig, gpus: int = 1) -> dict[str, float]:
    return estimate(config, gpus, Lengths.of(config), framework=0.0).gpu


def test_fsdp_shards_weights_and_optimiser_over_four_gpus(config: Any) -> None:
    """A quarter of float32 weights and of Adam's two moments; with bf16 a quarter of 2 and of 12 bytes a weight.

    The rotary embedding has eight float32 frequencies.
    """
    found = parts(config("--fsdp", "full_shard"), gpus=4)
    assert (found["weights"], found["optimiser"]) == ((PARAMETERS + 8) * 4 / 4, PARAMETERS * 8 / 4)
    found = parts(config("--fsdp", "full_shard", "--bf16", "true"), gpus=4)
    assert (found["weights"], found["optimiser"]) == ((PARAMETERS * 2 + 32) / 4, PARAMETERS * 12 / 4)
    assert not [words for words in _changes(config("--fsdp", "full_shard"), 4) if "--deepspeed" in words]


def test_four_bit_weights_take_half_a_byte_and_their_scales(config: Any) -> None:
    """The layers' matrices: half a byte and 1 + 4/256 bytes for each 64; embedding, head and norms stay float32."""
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    found = parts(config("--model.load_in_4bit", "true", "--peft.r", "4", "--peft.target_modules", "[q_proj]"))
    adapter = 2 * 4 * (32 + 32) * 4
    rest = 4 * (PARAMETERS - matrices)
    assert found["weights"] == pytest.approx(matrices * (0.5 + (1 + 4 / 256) / 64) + rest + adapter, rel=0.002)
    assert found["optimiser"] == 2 * adapter
    lengths = Lengths(32, 32)
    words = ["--model.load_in_4bit", "true", "--peft.r", "4", "--peft.target_modules", "[q_proj]"]
    assert estimate(config(*words), 1, lengths).total == PARAMETERS + adapter // 4


def test_zero_divides_what_its_stage_says(config: Any) -> None:
    """float32 on four ranks. Stage 1 and 2: 12 bytes a parameter of states; stage 3 also the weights."""
    plain = parts(config())
    assert plain["optimiser"] == 8 * PARAMETERS
    assert plain["communication"] == 0
    assert parts(config(), 4)["communication"] == 4 * PARAMETERS  # DDP's buckets
    for stage, weights in (("zero1.json", 1.0), ("zero2.json", 1.0), ("zero3.json", 0.25)):
        found = parts(config("--deepspeed", stage), 4)
        assert found["optimiser"] == 12 * PARAMETERS / 4, stage
        assert found["weights"] == pytest.approx(plain["weights"] * weights), stage
    offloaded = estimate(config("--deepspeed", "zero3_offload.json"), 4, Lengths(32, 32))
    assert offloaded.gpu["optimiser"] == offloaded.gpu["weights"] == 0
    assert offloaded.host == pytest.approx((12 + 4 + 4) * PARAMETERS / 4, rel=0.001)


def test_bfloat16_under_zero_halves_weights_and_keeps_float32_ones_with_the_states(config: Any) -> None:
    found = parts(config("--deepspeed", "zero2.json", "--bf16", "true"), 2)
    assert found["weights"] == pytest.approx(2 * PARAMETERS, rel=0.002)
    assert found["optimiser"] == 12 * PARAMETERS / 2


def test_the_reference_takes_weights_only_where_it_is_live_and_its_own(config: Any) -> None:
    assert parts(config())["reference"] == 0
    live = parts(config("--reference", "live"))
    assert live["reference"] == pytest.approx(4 * PARAMETERS, rel=0.001)
    assert parts(config("--loss.name", "tdpo"))["reference"] == live["reference"]
    assert parts(config("--reference", "live", "--peft.r", "4"))["reference"] == 0


def test_the_cache_takes_four_bytes_a_token_and_the_hidden_states_where_it_keeps_them(config: Any) -> None:
    """1000 rows of two completions of 32 tokens; 32 wide hidden states in bfloat16."""
    lengths = Lengths(32, 32)
    assert estimate(config(), 1, lengths).cache == 1000 * 2 * 32 * 4
    assert estimate(config("--loss.name", "tdpo"), 1, lengths).cache == 0
    hidden = ["--loss.name", "tdpo", "--reference", "cached", "--reference_hidden_dtype", "bfloat16"]
    assert estimate(config(*hidden), 1, lengths).cache == 1000 * 2 * 32 * (4 + 2 * 32)
    assert estimate(config("--loss.name", "simpo"), 1, lengths).cache == 0


def test_a_reference_that_moves_is_live_and_caches_nothing(config: Any) -> None:
    """Under ``sync_ref_model`` the policy's float32 weights stand there twice, and no score is kept."""
    moving = config("--sync_ref_model", "true")
    assert reference_mode(moving) == "live"
    found = estimate(moving, 1, Lengths(32, 32))
    assert found.cache == 0
    assert found.gpu["reference"] == pytest.approx(4 * PARAMETERS, rel=0.001)
    assert reference_mode(config()) == "cached"


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False), ("auto", None, False)],
)
def test_checkpointing_has_two_names_of_which_the_newer_goes_first(older: Any, newer: Any, expected: bool) -> None:
    given = {"gradient_checkpointing": older, "activation_checkpointing": newer}
    assert checkpoints_activations(given) is expected


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["--gradient_checkpointing", "false"], "--gradient_checkpointing true"),
        pytest.param(
            ["--activation_checkpointing", "false"], "--activation_checkpointing true", marks=newer_checkpointing
        ),
        pytest.param(
            ["--activation_checkpointing", "true"],
            "--per_device_train_batch_size 2 --gradient_accumulation_steps 2",
            marks=newer_checkpointing,
        ),
    ],
)
def test_a_proposed_change_takes_the_name_that_counts(words: list[str], first: str, config: Any) -> None:
    """The older name would change nothing beside the newer one."""
    assert " ".join(next(_changes(config(*words), 2))) == first


@newer_checkpointing
def test_checkpointing_by_its_newer_name_plans_fewer_activations(config: Any) -> None:
    plain, older, newer = (
        estimate(config("--bf16", "false", *words), 1, Lengths(32, 32)).gpu
        for words in ([], ["--gradient_checkpointing", "true"], ["--activation_checkpointing", "true"])
    )
    assert newer == older
    assert newer["activations"] < plain["activations"]


def test_changes_are_tried_until_one_fits(config: Any) -> None:
    """What fits just with a smaller batch is found there; what never fits lists every change."""
    words = ("--gradient_checkpointing", "false", "--bf16", "false")
    assert plan(config(*words), gpu_memory=80).fits
    everything = plan(config(*words), gpus=2, gpu_memory=0.1)
    assert not everything.fits
    assert not any(change.fits for change in everything.changes)
    tried = [" ".join(change.words) for change in everything.changes]
    assert tried[0] == "--gradient_checkpointing true"
    assert tried[1].endswith("--per_device_train_batch_size 2 --gradient_accumulation_steps 2")
    assert tried[2].endswith("--per_device_train_batch_size 1 --gradient_accumulation_steps 4")
    assert [one.split()[-1] for one in tried[3:]] == ["zero2.json", "zero3.json", "zero3_offload.json", "16", "true"]
    assert tried[-1].endswith("--peft.r 16 --model.load_in_4bit true")
    between = (everything.changes[1].peak + everything.changes[2].peak) / 2e9
    found = plan(config(*words), gpus=2, gpu_memory=between)
    assert [change.fits for change in found.changes] == [False, False, True]


def test_command_prints_a_table_or_json(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(config().to_yaml())
    assert main(["plan", str(tmp_path / "run.yaml"), "--gpus", "2", "--gpu-memory", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["tokens"] == 4 * (32 + 2 * 32)
    assert found["estimate"]["total"] == PARAMETERS
    assert found["peak"] == pytest.approx(sum(found["estimate"]["gpu"].values()))
    assert main(["plan", str(tmp_path / "run.yaml"), "--gpu-memory", "0.5"]) == 1
    assert "does not fit in 0.5 GB" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "run.yaml"), "--gpus", "0"]) == 2
    assert "--gpus" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "run.yaml"), "--prompt-tokens", "64"]) == 0  # a completion of one token


@pytest.mark.slow
def test_a_real_run_of_more_than_100M_parameters_takes_what_was_planned(tmp_path: Path) -> None:
    """The benchmark's case with gradient checkpointing, one pair a micro-batch; within 20 %."""
    spec = importlib.util.spec_from_file_location("planner_benchmark", ROOT / "benchmarks" / "planner.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules["planner_benchmark"] = benchmark
    spec.loader.exec_module(benchmark)
    (tmp_path / "case").mkdir()
    case = benchmark.CASES["gradient checkpointing"]
    path, lengths = benchmark.prepare(case, tmp_path / "case", pairs=1)
    planned = benchmark.planned(path, case, lengths)
    assert planned["parameters"] >= 100_000_000
    assert planned["peak"] == pytest.approx(benchmark.measured(path, case)[0], rel=0.2)


def test_a_list_is_planned_with_its_most_completions_or_four(config: Any) -> None:
    """Four rows of a prompt of 32 and 4 or 7 completions of 32 tokens; scores of 1000 rows are a float32 a token."""
    listed = ("--loss.name", "plackett_luce")
    assert plan(config(*listed)).tokens == 4 * (32 + 4 * 32)
    assert plan(config(*listed, "--max_completions", "7")).tokens == 4 * (32 + 7 * 32)
    four, seven = (estimate(config(*listed, *words), 1, Lengths(32, 32)) for words in ((), ("--max_completions", "7")))
    assert (four.cache, seven.cache) == (1000 * 4 * 32 * 4, 1000 * 7 * 32 * 4)
    assert seven.gpu["activations"] > four.gpu["activations"]


@pytest.mark.parametrize("gigabytes", [float("nan"), 0.0])
def test_memory_that_is_no_number_is_refused(gigabytes: float, config: Any) -> None:
    """In GB that are NaN nothing fitted, whatever was changed."""
    with pytest.raises(ValueError, match="expected at least one GPU and more than 0 GB, found 1, "):
        plan(config(), gpu_memory=gigabytes)
