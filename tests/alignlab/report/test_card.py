"""Model cards: the hub's metadata, how to load, what came of it, and the paper."""

import json
import re
from pathlib import Path

import pytest
import yaml
from making import make_rows

from alignlab import load_config, losses, train
from alignlab.report import write_card


@pytest.fixture
def folder(tmp_path):
    """What a run leaves, as far as the card reads it."""
    log = [{"step": 4, "loss": 0.5, "eval_loss": 0.4, "eval_rewards/accuracies": 0.75, "eval_rewards/margins": 0.5}]
    config = {
        "loss": {"name": "group_robust", "base": {"name": "ipo", "beta": 0.2}},
        "model": {"name_or_path": "allenai/Llama-3.1-Tulu-3-8B-SFT"},
        "data": {"train": [{"path": "argilla/ultra`feedback", "weight": 1}, {"path": "org/set"}, "mine.jsonl"]},
        "learning_rate": 5e-7,
        "seed": 0,
    }
    for name, value in {
        "trainer_state.json": {"log_history": log, "global_step": 4, "max_steps": 4},
        "config.yaml": config,
        "environment.json": {"packages": {"alignlab": "0.2.0", "torch": "2.13.0"}},
        "data.json": {"sets": {"train": {"rows": 12}}},
        "config.json": {"architectures": ["LlamaForCausalLM"]},
    }.items():
        (tmp_path / name).write_text(yaml.safe_dump(value) if name.endswith("yaml") else json.dumps(value))
    return tmp_path


def parts(folder):
    _, metadata, text = write_card(folder).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_metadata(folder):
    metadata, _ = parts(folder)
    assert metadata["base_model"] == "allenai/Llama-3.1-Tulu-3-8B-SFT"
    assert metadata["datasets"] == ["org/set"]  # ids of the hub alone, and no file of this machine
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "text-generation")
    assert metadata["tags"] == ["alignlab", "preference-alignment", "group_robust"]
    (result,) = metadata["model-index"][0]["results"]
    assert {one["name"]: one["value"] for one in result["metrics"]} == {
        "preference accuracy": 0.75,
        "reward margin": 0.5,
        "loss": 0.4,
    }


def test_text(folder):
    _, text = parts(folder)
    assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder")' in text
    assert "| preference accuracy | 0.75 |" in text
    assert "| learning_rate | `5e-07` |" in text
    assert "| rows of train | 12 |" in text
    assert "`argilla/ultra'feedback`" in text  # no text from a config ends its code
    assert "alignlab 0.2.0, torch 2.13.0" in text
    for number in ("2405.20304", "2310.12036"):  # the loss, and the one that it is built on
        assert f"eprint = {{{number}}}" in text


def test_an_adapter_and_a_reward_model_load_by_their_classes(folder):
    (folder / "adapter_config.json").write_text("{}")
    metadata, text = parts(folder)
    assert metadata["library_name"] == "peft"
    assert 'AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")' in text
    (folder / "adapter_config.json").unlink()
    (folder / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    metadata, text = parts(folder)
    assert metadata["pipeline_tag"] == "text-classification"
    assert 'AutoModelForSequenceClassification.from_pretrained("path/to/this/folder")' in text


def test_every_paper_that_a_loss_cites_becomes_an_entry():
    for name in losses.names():
        source = losses.describe(name).source
        cited = set(re.findall(r"arXiv:(\d{4}\.\d{4,5})", source))
        assert set(re.findall(r"eprint = \{([^}]*)\}", losses.bibtex(source))) == cited, name
        assert cited or name in {"sft", "weighted_sum"}, name
    text = losses.bibtex(losses.describe("dpo").source)
    assert text.count("@misc{") == 2
    assert "author = {Rafailov and others}" in text


def test_a_run_writes_its_card_and_its_code_loads_the_model(tmp_path, model_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)), encoding="utf-8")
    values = {
        "loss": {"name": "dpo"},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": str(path), "eval": str(path)},
        "output_dir": str(tmp_path / "run"),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "report": False,
        "disable_tqdm": True,
    }
    folder = train(load_config(values))
    text = Path(folder, "README.md").read_text(encoding="utf-8")
    assert "![" not in text  # no charts were drawn
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder))
    scope = {}
    exec(code, scope)
    assert scope["model"].config.architectures == ["LlamaForCausalLM"]
    assert len(scope["tokenizer"]) > 0
