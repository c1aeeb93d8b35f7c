"""Every shipped config loads, opens with its purpose and its command, and says only what exists."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from alignlab.config.run import load_config
from alignlab.rounds import load_rounds
from alignlab.run.search import load_search
from alignlab.run.sweep import load_sweep

FOLDER = Path(str(resources.files("alignlab.configs")))
SWEEPS = sorted(FOLDER.glob("sweep_*.yaml"))
ROUNDS = [FOLDER / f"{name}.yaml" for name in ("iterative_dpo", "rejection_sft", "rlhflow", "spin")]
SEARCHES = sorted(FOLDER.glob("search_*.yaml"))
CONFIGS = sorted({*FOLDER.glob("*.yaml")} - {*SWEEPS, *ROUNDS, *SEARCHES})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_loads_by_its_bare_name(path):
    assert load_config(path.stem) == load_config(path)
    assert load_config(path.name).training["output_dir"].startswith("runs/")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_opens_with_purpose_and_command(path):
    header = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert header is not None
    assert f"alignlab train {path.name}" in header[0] or f"alignlab train configs/{path.name}" in header[0]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_shipped_sweep_loads_and_opens_with_its_command(path):
    assert len({run.name for run in load_sweep(path.name).runs}) > 1
    header = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert header is not None
    assert f"alignlab sweep {path.name}" in header[0]


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.name)
def test_shipped_search_loads_at_every_end_and_opens_with_its_command(path):
    found = load_search(path.name)
    assert found.folder == Path("runs") / path.stem
    assert len(found.space.corners()) == 6
    header = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert header is not None
    assert f"alignlab sweep {path.name}" in header[0]


@pytest.mark.parametrize("path", ROUNDS, ids=lambda path: path.name)
def test_shipped_loop_loads_and_opens_with_its_command(path):
    found = load_rounds(path.stem)
    assert found == load_rounds(path)
    assert found.output_dir == f"runs/{path.stem}"
    header = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert header is not None
    assert f"alignlab rounds {path.name}" in header[0]


def test_the_loop_of_a_recipe_trains_by_it():
    """Every value of a round's training is the recipe's, but model, data and folder."""
    loop, recipe = load_rounds("rlhflow"), load_config("rlhflow_llama3_8b")
    told = {"model.name_or_path": loop.start, "data.train": "pairs.jsonl", "output_dir": "runs/one"}
    found = loop.run_config(told)
    assert (found.loss, found.model, found.peft) == (recipe.loss, recipe.model, None)
    assert {**found.training, "output_dir": recipe.training["output_dir"]} == recipe.training
    assert recipe.data.train == f"{loop.output_dir}/round-01/pair/pairs.jsonl"
    assert (loop.rounds, loop.prompts.per_round, loop.sample.samples, loop.reference) == (3, 20000, 8, "initial")


ZERO = sorted(FOLDER.glob("zero*.json"))


def keys_of(values):
    """Yields every key of nested mappings."""
    for key, value in values.items():
        yield key
        if isinstance(value, dict):
            yield from keys_of(value)


@pytest.mark.parametrize("path", ZERO, ids=lambda path: path.name)
def test_deepspeed_config_follows_the_run_and_every_key_is_explained(path):
    config = json.loads(path.read_text(encoding="utf-8"))
    zero = config["zero_optimization"]
    assert zero["stage"] == int(path.stem[4])
    assert ("offload_optimizer" in zero) == path.stem.endswith("_offload")
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[key] == "auto"
    assert config["bf16"]["enabled"] == config["fp16"]["enabled"] == config["gradient_clipping"] == "auto"
    page = (Path(__file__).parents[1] / "docs" / "zero.md").read_text(encoding="utf-8")
    for key in keys_of(config):
        assert f"`{key}`" in page, key
