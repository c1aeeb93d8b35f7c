"""Every input and fault that ended in a traceback, or in a message that named nothing, ends in one that helps."""

import json
import re
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from making import make_model, make_rows
from transformers import AutoTokenizer, TrainingArguments

from alignlab import PreferenceConfig, PreferenceTrainer
from alignlab.cli import main
from alignlab.data import open_sources

GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.fixture
def here(tmp_path, monkeypatch, model_path):
    """A working directory with rows and a model."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(8)), encoding="utf-8")
    shutil.copytree(model_path, "model")
    return tmp_path


def refused(capsys, *words):
    """Returns the one error of a command that ends with a mistake of its user."""
    assert main(list(words)) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    found = [line for line in err.splitlines() if line.startswith("alignlab: error: ")]
    assert len(found) == 1, err
    return err[err.index(found[0]) :].removeprefix("alignlab: error: ").strip()


def trained(capsys, **changes):
    values = {
        "loss": {"name": "dpo"},
        "model": {"name_or_path": "model"},
        "data": {"train": "rows.jsonl"},
        "output_dir": "out",
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report": False,
        "save_strategy": "no",
        **changes,
    }
    Path("run.yaml").write_text(json.dumps(values), encoding="utf-8")
    return refused(capsys, "train", "run.yaml")


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def enlarged(path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["dog", *(f"new{index}" for index in range(50))])
    tokenizer.save_pretrained(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (enlarged, r"the tokenizer has 351 tokens and the model embeddings for 300: the rows hold token id 300\."),
        (
            lambda path: cut(path / "model.safetensors", 5000),
            "the model of 'model' cannot be loaded: SafetensorError: ",
        ),
        (
            lambda path: cut(path / "tokenizer.json", 500),
            "the tokenizer of 'model' cannot be loaded: JSONDecodeError: ",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "the model of 'model' cannot be loaded: OSError: "),
        (lambda path: cut(path / "config.json", 9), "the tokenizer of 'model' cannot be loaded: "),
    ],
    ids=["tokenizer larger than the model", "cut weights", "cut tokenizer", "no weights", "cut config"],
)
def test_a_damaged_model_is_named(here, capsys, damage, message):
    damage(here / "model")
    assert re.match(message, trained(capsys))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report_to": "swanlab"}, "report_to: swanlab needs a package that is not installed: pip install swanlab"),
        ({"report_to": "wandbx"}, "report_to: there is no 'wandbx'; allowed are none, all, "),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: expected at least 1, found 0"),
        ({"progress_seconds": 0}, "progress_seconds: expected more than 0, found 0"),
        (
            {"data": {"train": [{"path": "rows.jsonl", "weight": 1e9}]}},
            "rows.jsonl: weight is 1e+09, as many passes over it an epoch; allowed are up to 10,000 ",
        ),
        (
            {"data": {"train": [{"path": "rows.jsonl", "weight": 1e-9}]}},
            "the weights of the mixture leave no row to train on (rows.jsonl: 1e-09 of 8 rows); raise one",
        ),
        (
            {"model": {"name_or_path": "path/to/sft-model"}},
            "the tokenizer of 'path/to/sft-model' cannot be loaded: there is no such folder, and no model of the hub",
        ),
        ({"model": {"name_or_path": "rows.jsonl"}}, "the tokenizer of 'rows.jsonl' cannot be loaded: it is a file, "),
        (
            {"model": {"name_or_path": "model", "chat_template": "none.jinja"}},
            "model.chat_template: none.jinja cannot be read: ",
        ),
        ({"output_dir": "rows.jsonl"}, "output_dir: rows.jsonl cannot be a folder: "),
        ({"output_dir": "rows.jsonl/run"}, "output_dir: rows.jsonl/run cannot be a folder: "),
        ({"score_cache_dir": "rows.jsonl"}, "[Errno 20] cannot create the prepared rows folder: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_is_refused_by_its_key(here, capsys, changes, message):
    assert trained(capsys, **changes).startswith(message)


@pytest.mark.parametrize("key", ["data_cache_dir", "score_cache_dir"])
def test_the_folder_of_the_caches_is_named_by_all_of_its_names(here, capsys, key):
    assert "choose another with data_cache_dir, score_cache_dir or ALIGNLAB_CACHE" in trained(
        capsys, **{key: "rows.jsonl"}
    )


def test_an_unknown_best_metric_is_answered_with_those_that_there_are(here, capsys):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    data = {"train": "rows.jsonl", "eval_rows": 2}
    found = trained(capsys, load_best_model_at_end=True, metric_for_best_model="nope", data=data, **steps)
    assert found.startswith("metric_for_best_model: there is no 'nope'; found lengths/chosen, ")
    assert "rewards/accuracies" in found


@pytest.mark.parametrize("text", ["a: &x\n  b: *x\n", "loss: &x {name: dpo, base: *x}\n", "a: &x [[*x]]\n"])
def test_a_yaml_alias_that_contains_itself(here, capsys, text):
    Path("alias.yaml").write_text(text, encoding="utf-8")
    assert refused(capsys, "train", "alias.yaml") == (
        "alias.yaml: not valid YAML: an alias (*...) stands within what it names"
    )


def test_yaml_nested_too_deeply(here, capsys):
    Path("deep.yaml").write_text("[" * 1500, encoding="utf-8")
    assert refused(capsys, "train", "deep.yaml") == "deep.yaml: not valid YAML: nested too deeply"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("long.jsonl", json.dumps(GOOD)[:-1] + ', "weight": ' + "1" * 4400 + "}", "broken JSON: an integer of more"),
        ("long.json", '[{"weight": ' + "1" * 4400 + "}]", "long.json: not a JSON list in UTF-8: "),
        ("empty.jsonl", "", "no row to train on: empty.jsonl holds none"),
        ("empty.json", "", "no row to train on: empty.json holds none"),
        ("empty.csv", "", "empty.csv: a csv file must open with a line of column names"),
        (
            "semicolons.csv",
            "prompt;chosen;rejected\na;b;c\n",
            "semicolons.csv: columns are separated by ';', and have ",
        ),
        ("wrapped.json", json.dumps({"data": [GOOD]}), "found an object whose 'data' is a list; write that list alone"),
        ("wrapped.json", json.dumps({"data": [GOOD]}, indent=1), "an object whose 'data' is a list; write that list"),
    ],
)
def test_a_file_is_refused_by_its_name(here, capsys, name, text, message):
    Path(name).write_text(text, encoding="utf-8")
    assert message in refused(capsys, "data", "check", name)


def test_one_row_in_a_json_file_is_a_row(here, capsys):
    """An object with two lists of turns, or one that is a conversation, is no wrapping."""
    turns = [{"role": "user", "content": "Hi?"}]
    row = {"prompt": turns, "chosen": [{"role": "assistant", "content": "Yes."}]}
    Path("one.json").write_text(json.dumps(row | {"rejected": [{"role": "assistant", "content": "No."}]}))
    assert main(["data", "check", "one.json"]) == 0


def test_python_objects_that_are_no_rows():
    frame = Dataset.from_list([GOOD]).to_pandas()
    with pytest.raises(ValueError, match=r"no DataFrame; give datasets\.Dataset\.from_pandas\(frame\)"):
        open_sources(frame)
    with pytest.raises(ValueError, match="found a DatasetDict of train, test; give one of them"):
        open_sources(DatasetDict(train=Dataset.from_list([GOOD]), test=Dataset.from_list([GOOD])))


def test_what_the_stock_trainer_takes_and_this_one_does_not(tmp_path, tokenizer):
    model, args = make_model(), PreferenceConfig(output_dir=str(tmp_path))
    given = {"train_dataset": make_rows(4), "processing_class": tokenizer}
    with pytest.raises(ValueError, match="ref_model: it is the policy itself, which would be frozen; leave it out"):
        PreferenceTrainer(model, args, "dpo", ref_model=model, **given)
    assert all(one.requires_grad for one in model.parameters())
    with pytest.raises(ValueError, match="args: expected a PreferenceConfig, found TrainingArguments"):
        PreferenceTrainer(model, TrainingArguments(output_dir=str(tmp_path)), "dpo", **given)
    for name in ("data_collator", "compute_metrics", "compute_loss_func"):
        with pytest.raises(ValueError, match=f"^{name}: not taken here: "):
            PreferenceTrainer(model, args, "dpo", **given, **{name: list})
    with pytest.raises(ValueError, match="model: no weight of it is trainable"):
        PreferenceTrainer(make_model().requires_grad_(False), args, "dpo", **given).train()
    with pytest.raises(ValueError, match=r"predict\(\): there are no predictions; evaluate\(\) returns metrics"):
        PreferenceTrainer(model, args, "dpo", **given).predict(make_rows(2))


ROOT = Path(__file__).parents[1]


def test_every_test_of_the_table_is_there():
    page = (ROOT / "docs" / "hostile-input.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    files = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(named) > 25
    assert named - set(re.findall(r"^def (test_\w+)", "\n".join(files), re.MULTILINE)) == set()


def test_the_page_for_trls_users_knows_of_generation():
    assert "eval_generations" in (ROOT / "docs" / "from-trl.md").read_text(encoding="utf-8")
