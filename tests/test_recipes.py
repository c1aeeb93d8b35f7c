"""Every recipe parses, says where each value is from, is found from anywhere, and trains three steps when shrunk."""

import json
import re
import shlex

import make_recipes
import pytest

from alignlab.cli import main
from alignlab.config import find_recipe, load_config, read_recipe, read_yaml, recipes
from alignlab.planner import plan

RECIPES = {recipe.name: recipe for recipe in recipes()}
FIELDS = {"data", "cards", "memory", "score", "run", "differs"}
BLOCKS = {"loss", "model", "peft", "data"}


def test_the_recipes_of_real_models_are_there():
    assert len(RECIPES) >= 10
    losses = {load_config(recipe.path).loss["name"] for recipe in RECIPES.values()}
    assert losses >= {"dpo", "sigmoid_norm", "simpo", "orpo", "kto", "ipo"}


@pytest.mark.parametrize("name", RECIPES)
def test_head_says_what_it_takes_what_came_out_and_whether_it_ran(name):
    recipe = RECIPES[name]
    text = recipe.path.read_text(encoding="utf-8")
    assert set(recipe.fields) == FIELDS
    assert recipe.cards is not None
    assert re.fullmatch(r"\d+\.\d GB on each, planned, not measured", recipe.fields["memory"])
    assert recipe.fields["run"] == "not run here"
    starts = f"--num_gpus {recipe.cards[0]} launch/train.py" if recipe.cards[0] > 1 else "alignlab train"
    assert f"{starts} {name}.yaml\n" in text
    assert f"alignlab plan {name}\n" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_names_its_source_and_every_source_is_used(name):
    text = RECIPES[name].path.read_text(encoding="utf-8")
    head, _, body = text.partition("\n\n")
    for line in body.splitlines():
        key, found = re.match(r" *(\w*)", line)[1], re.search(r"# (\[\d\]|ours)", line)
        assert not line or key in BLOCKS or found, line
    listed = set(re.findall(r"^# (\[\d\]) ", head, re.MULTILINE))
    assert set(re.findall(r"\[\d\]", body)) <= listed
    for one in listed:
        assert text.count(one) > 1, one


def test_a_recipe_is_found_by_name_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("zephyr_dpo_7b")
    assert config == load_config("zephyr_dpo_7b.yaml")
    assert (config.loss["beta"], config.training["output_dir"]) == (0.01, "runs/zephyr_dpo_7b")
    with pytest.raises(ValueError, match=r"no recipe 'zephyr'; there are .*zephyr_dpo_7b, "):
        find_recipe("zephyr")


def test_page_is_the_generated_one():
    committed = (make_recipes.DOCS / "recipes.md").read_text(encoding="utf-8")
    assert make_recipes.page() == committed, "run python docs/make_recipes.py"


@pytest.mark.parametrize("name", RECIPES)
def test_table_of_planned_memory_agrees_with_the_head(name):
    rows = {int(row["cards"]): float(row["gb"]) for row in make_recipes.read_planned() if row["recipe"] == name}
    found = float(RECIPES[name].fields["memory"].split(" GB")[0])
    assert rows[RECIPES[name].cards[0]] == pytest.approx(found, abs=0.051)
    assert list(rows) == ([1, 2, 4, 8] if "deepspeed" in read_yaml(RECIPES[name].path) else [1])
    assert list(rows.values()) == sorted(rows.values(), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_planned_memory_is_what_the_head_says(name):
    gpus, memory = RECIPES[name].cards
    found = plan(load_config(RECIPES[name].path), gpus, memory)
    assert found.fits
    assert f"{found.estimate.peak / 1e9:.1f} GB" == RECIPES[name].fields["memory"].split(" on ")[0]


def test_plan_takes_its_cards_from_the_head_of_a_config(tmp_path, model_path, capsys):
    values = {"loss": {"name": "dpo"}, "model": {"name_or_path": str(model_path)}, "data": {"train": "pairs.jsonl"}}
    path = tmp_path / "my.yaml"
    path.write_text(f"# My run.\n#\n# cards:   3 x 7.5 GB\n\n{json.dumps(values)}\n", encoding="utf-8")
    assert main(["plan", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gpus"], found["gpu_memory"]) == (3, 7.5)
    assert main(["plan", str(path), "--json", "--gpus", "1", "--gpu-memory", "9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gpus"], found["gpu_memory"]) == (1, 9.0)


def test_list_and_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(f"│ {name} " in shown for name in RECIPES)
    assert main(["recipes", "olmoe_dpo"]) == 0
    assert capsys.readouterr().out == RECIPES["olmoe_dpo"].path.read_text(encoding="utf-8")
    assert main(["new", "olmoe_dpo", "mine/my.yaml"]) == 0
    assert capsys.readouterr().out == "alignlab plan mine/my.yaml\nalignlab train mine/my.yaml\n"
    copy = (tmp_path / "mine" / "my.yaml").read_text(encoding="utf-8")
    assert copy.replace("mine/my.yaml", "olmoe_dpo.yaml") == RECIPES["olmoe_dpo"].path.read_text(encoding="utf-8")
    assert read_recipe(tmp_path / "mine" / "my.yaml").cards == (8, 80.0)
    assert main(["new", "olmoe_dpo", "mine/my.yaml"]) == 2
    assert capsys.readouterr().err == "alignlab: error: mine/my.yaml is there already; choose another name\n"


@pytest.mark.parametrize("name", ["noext", "folder", ".yaml", "", "two\nlines.yaml", "my.json"])
def test_a_name_that_is_no_copys_is_refused_before_anything_is_written(name, tmp_path, monkeypatch, capsys):
    """`noext --tiny` made its folder where the file was to go, and then could not write the file."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "olmoe_dpo", name, "--tiny"]) == 2
    said = "is no name for the copy, which has to end in .yaml or .yml"
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_a_space_is_quoted_where_it_is_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "olmoe_dpo", "my run.yaml"]) == 0
    assert capsys.readouterr().out == "alignlab plan 'my run.yaml'\nalignlab train 'my run.yaml'\n"


@pytest.mark.parametrize("name", RECIPES)
def test_shrunk_to_two_layers_it_trains_three_steps(name, tmp_path, monkeypatch, capsys):
    """`--tiny` changes model, data, engine, lengths and batch; loss, schedule and adapter are the recipe's."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", name, "try.yaml", "--tiny"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])  # libraries speak before it, once a process
    assert words == ["alignlab", "train", "try.yaml"]
    small, whole = load_config("try.yaml"), load_config(name)
    assert (small.loss, small.peft) == (whole.loss, whole.peft)
    for key in ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "gradient_checkpointing"):
        assert small.training[key] == whole.training[key], key
    assert main([*words[1:], "--report", "false"]) == 0
    state = json.loads((tmp_path / "try" / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert state["global_step"] == len(losses) == 3
    assert all(0 < loss < 1e4 for loss in losses)
