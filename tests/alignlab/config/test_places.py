"""Where a run may not write: over what it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignlab.config import load_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("sft", "adapter", "exp/data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "sft"}))
    for name in ("pairs.jsonl", "exp/pairs.jsonl", "exp/rejected_rows.jsonl", "exp/data/pairs.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "link").symlink_to("sft")
    return tmp_path


def load(output: str, **keys: str) -> None:
    values = {"loss": {"name": "dpo"}, "model": {"name_or_path": "hub/model"}, "data": {"train": "pairs.jsonl"}}
    load_config(
        {**values, "output_dir": output}, [f"--{key.replace('__', '.')}={value}" for key, value in keys.items()]
    )


REFUSED = [
    ("sft", {"model__name_or_path": "sft"}, "is the folder of model.name_or_path (sft)"),
    ("link", {"model__name_or_path": "sft"}, "is the folder of model.name_or_path (sft)"),
    ("sft", {"model__name_or_path": "link"}, "is the folder of model.name_or_path (link)"),
    ("hub/model", {}, "is the folder of model.name_or_path (hub/model)"),
    (".", {"model__name_or_path": "sft"}, "holds the folder of model.name_or_path (sft)"),
    ("sft/run", {"model__name_or_path": "sft"}, "lies in the folder of model.name_or_path (sft)"),
    ("link/run", {"model__name_or_path": "sft"}, "lies in the folder of model.name_or_path (sft)"),
    ("sft", {"model__tokenizer": "sft"}, "is the folder of model.tokenizer (sft)"),
    ("adapter", {"model__adapter": "adapter"}, "is the folder of model.adapter (adapter)"),
    ("sft", {"model__name_or_path": "adapter"}, "is the folder of model.name_or_path's base model (sft)"),
    ("sft", {"ref_model_name_or_path": "sft"}, "is the folder of ref_model_name_or_path (sft)"),
    ("adapter", {"ref_adapter": "adapter"}, "is the folder of ref_adapter (adapter)"),
    ("sft", {"scorers": "{help: sft}"}, "is the folder of scorers.help (sft)"),
]


@pytest.mark.parametrize(("output", "keys", "found"), REFUSED)
def test_the_folder_of_a_model_is_refused(folder: Path, output: str, keys: dict[str, str], found: str) -> None:
    with pytest.raises(ValueError, match=r"^output_dir: ") as error:
        load(output, **keys)
    assert (
        str(error.value) == f"output_dir: {output} {found}, which the run would write over; choose another output_dir"
    )


@pytest.mark.parametrize(
    ("output", "keys", "found"),
    [
        ("exp", {"data__train": "exp/rejected_rows.jsonl"}, "holds, under a name that the run writes to, data.train"),
        ("exp/data", {"data__train": "exp/data"}, "is the folder, or lies in it, that is read for data.train"),
        ("exp/data/run", {"data__train": "exp/data"}, "is the folder, or lies in it, that is read for data.train"),
        (
            "exp",
            {"data__eval": "exp/rejected_rows.jsonl", "overwrite_output_dir": "true"},
            "holds, under a name that the run writes to, data.eval",
        ),
    ],
)
def test_data_that_a_write_would_harm_is_refused(folder: Path, output: str, keys: dict[str, str], found: str) -> None:
    with pytest.raises(ValueError, match=r"^output_dir: ") as error:
        load(output, **keys)
    path = keys.get("data__train") or keys["data__eval"]
    assert str(error.value) == f"output_dir: {output} {found} ({path}); choose another output_dir"


@pytest.mark.parametrize(
    ("output", "keys"),
    [
        ("sft-dpo", {"model__name_or_path": "sft"}),
        ("exp", {"data__train": "exp/pairs.jsonl"}),
        ("exp", {"data__train": "exp/data"}),
        ("exp", {"data__train": "exp/pairs.jsonl", "overwrite_output_dir": "true"}),
        ("runs/hub", {"model__name_or_path": "hub"}),
    ],
)
def test_other_folders_are_not(folder: Path, output: str, keys: dict[str, str]) -> None:
    load(output, **keys)


@pytest.mark.parametrize("output", ["", " ", "a\0b"])
def test_what_is_no_path_is_refused(folder: Path, output: str) -> None:
    with pytest.raises(ValueError, match=r"^output_dir: expected the path of a folder, found '"):
        load(output)
