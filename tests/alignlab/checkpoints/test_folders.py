"""Checkpoints: whole or not there, checked file by file, rotated without losing the last good one."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from dying import dies_at
from transformers.trainer_utils import get_last_checkpoint

from alignlab.checkpoints.folders import check, clean, holds_checkpoints, newest_good, problem, rotate, written_aside
from alignlab.checkpoints.in_place import write_whole
from alignlab.checkpoints.manifest import MANIFEST, Manifest, read_manifest, write_manifest


def write(run: Path, step: int, content: bytes = b"weights", **facts: Any) -> Path:
    """A checkpoint of two files, one of them in a folder of its own."""
    final = run / f"checkpoint-{step}"
    with written_aside(final, **facts) as aside:
        (aside / "model.safetensors").write_bytes(content)
        (aside / "inner").mkdir()
        (aside / "inner" / "optimizer.pt").write_bytes(b"optimizer" * 100)
    return final


def test_a_checkpoint_is_not_there_until_it_is_whole(tmp_path: Path) -> None:
    """While it is written nobody sees it, not even transformers; then its manifest names size and checksum of all."""
    final = tmp_path / "checkpoint-5"
    with written_aside(final, zero_stage=2) as aside:
        (aside / "model.safetensors").write_bytes(b"abc")
        assert get_last_checkpoint(tmp_path) is None
        assert holds_checkpoints(tmp_path) is None
        assert not final.exists()
    manifest = read_manifest(final)
    assert manifest is not None
    assert (manifest.step, manifest.ranks, manifest.zero_stage, manifest.resumable) == (5, 1, 2, True)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2, B.1
    assert {name: (one.bytes, one.sha256) for name, one in manifest.files.items()} == {"model.safetensors": (3, sha256)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5"]


def test_torch_s_index_of_a_checkpoint_in_parts_is_a_file_like_others(tmp_path: Path) -> None:
    """Hidden files are leftovers, but for ``.metadata``: without it the parts that FSDP2's ranks wrote are lost."""
    with written_aside(tmp_path / "checkpoint-1") as aside:
        (aside / "pytorch_model_fsdp_0").mkdir()
        for name in (".metadata", ".nfs01", "__0_0.distcp"):
            (aside / "pytorch_model_fsdp_0" / name).write_bytes(b"part")
    manifest = read_manifest(tmp_path / "checkpoint-1")
    assert manifest is not None
    assert set(manifest.files) == {"pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp"}
    (tmp_path / "checkpoint-1" / "pytorch_model_fsdp_0" / ".metadata").unlink()
    assert problem(tmp_path / "checkpoint-1") == "pytorch_model_fsdp_0/.metadata is missing"


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def fail() -> None:
        with written_aside(tmp_path / "checkpoint-2") as aside:
            (aside / "model.safetensors").write_bytes(b"half")
            raise OSError("no room")

    with pytest.raises(OSError, match=r"checkpoint-2 could not be saved .*: no room; checkpoint-1 is the newest"):
        fail()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]
    assert problem(tmp_path / "checkpoint-1") is None


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    """One bit in any file or in the manifest, a cut, a missing and an additional file."""

    def damaged(change: Any) -> str:
        folder = write(tmp_path, 3)
        change(folder)
        found = problem(folder)
        assert found is not None
        return found

    def flip(name: str) -> Any:
        def change(folder: Path) -> None:
            content = bytearray((folder / name).read_bytes())
            content[len(content) // 2] ^= 1
            (folder / name).write_bytes(content)

        return change

    assert damaged(flip("model.safetensors")).startswith("model.safetensors is not what was written: sha256 ")
    assert damaged(flip("inner/optimizer.pt")).startswith("inner/optimizer.pt is not what was written")
    assert damaged(flip(MANIFEST)).startswith(MANIFEST)
    assert damaged(lambda f: os.truncate(f / "inner/optimizer.pt", 7)) == (
        "inner/optimizer.pt has 7 bytes, 900 were written"
    )
    assert damaged(lambda f: (f / "inner/optimizer.pt").unlink()) == "inner/optimizer.pt is missing"
    assert damaged(lambda f: (f / "more.pt").touch()) == "more.pt is not in checkpoint-3's manifest"
    assert damaged(lambda f: (f / MANIFEST).write_text("{}")).startswith(f"{MANIFEST} is not a manifest")
    assert "has no manifest.json" in damaged(lambda f: (f / MANIFEST).unlink())
    text = json.loads((write(tmp_path, 3) / MANIFEST).read_text())
    assert damaged(lambda f: (f / MANIFEST).write_text(json.dumps({**text, "step": 30}))) == (
        f"{MANIFEST} is not what was written"
    )


def test_the_newest_good_one_is_taken_and_the_others_are_named(tmp_path: Path, caplog: Any) -> None:
    """Newest by when it was saved: step 2, saved again after a resume from there, comes before the older step 9."""
    write(tmp_path, 9)
    write(tmp_path, 2)
    (tmp_path / "checkpoint-30").mkdir()  # of another program
    broken = write(tmp_path, 4)
    os.truncate(broken / "model.safetensors", 1)
    write(tmp_path, 5, resumable=False)
    assert newest_good(tmp_path) == tmp_path / "checkpoint-2"
    text = caplog.text
    assert "checkpoint-4 is passed over: model.safetensors has 1 bytes, 7 were written" in text
    assert "checkpoint-5 is passed over: it holds the model alone" in text
    assert "checkpoint-30 is passed over: it has no manifest.json" in text
    assert "checkpoint-9" not in text
    assert newest_good(tmp_path / "nowhere") is None


def test_what_was_asked_for_by_name_is_refused_if_damaged_and_zero_pickles_without_a_manifest(
    tmp_path: Path, caplog: Any
) -> None:
    folder = write(tmp_path, 3)
    check(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-3 is no checkpoint: it has no trainer_state.json$"):
        check(folder)
    (folder / "trainer_state.json").write_text("{}")
    check(folder)  # safetensors and weights_only: no code runs
    (folder / "trainer_state.json").unlink()
    assert "cannot be checked" in caplog.text
    (folder / "global_step3").mkdir()
    with pytest.raises(ValueError, match=r"checkpoint-3: it has no manifest.*trust_checkpoint: true"):
        check(folder)
    check(folder, trust=True)
    damaged = write(tmp_path, 4)
    (damaged / "model.safetensors").write_bytes(b"swapped")
    with pytest.raises(ValueError, match=r"model.safetensors is not what was written"):
        check(damaged)
    with pytest.raises(ValueError, match=r"there is no folder .*checkpoint-7"):
        check(tmp_path / "checkpoint-7")
    assert newest_good(tmp_path, trust=True) is None, "trust takes what has no manifest, never what is known as damaged"
    (folder / "trainer_state.json").touch()
    assert newest_good(tmp_path, trust=True) == folder


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (9, 1, 2, 3, 4):
        write(tmp_path, step)
    rotate(tmp_path, None, {"checkpoint-4"})
    assert len(list(tmp_path.iterdir())) == 5
    rotate(tmp_path, 3, {"checkpoint-4", "checkpoint-1"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    rotate(tmp_path, 1, {"checkpoint-4", "checkpoint-1"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]


def test_what_kills_left_is_cleaned_and_said(tmp_path: Path, caplog: Any) -> None:
    """A half-written, a half-deleted and a converted one go; one that was about to be replaced comes back."""
    write(tmp_path, 1).rename(tmp_path / ".replaced-checkpoint-1")
    write(tmp_path, 2).rename(tmp_path / ".saving-checkpoint-2")
    write(tmp_path, 3).rename(tmp_path / ".deleting-checkpoint-3")
    write(tmp_path, 4).rename(tmp_path / ".universal-checkpoint-4")
    (tmp_path / ".saving-notes").mkdir()  # not ours
    caplog.set_level(logging.INFO)
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".saving-notes", "checkpoint-1"]
    assert problem(tmp_path / "checkpoint-1") is None
    assert "checkpoint-1: a killed run was about to replace it; it is back" in caplog.text
    assert "checkpoint-2: a killed run was saving it; the unfinished files are deleted" in caplog.text
    assert "checkpoint-3: a killed run left it behind; it is deleted" in caplog.text


def test_a_checkpoint_is_replaced_by_its_successor(tmp_path: Path) -> None:
    write(tmp_path, 1, b"old")
    assert (write(tmp_path, 1, b"new") / "model.safetensors").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_checkpoint_of_no_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    empty = Manifest(step=1, ranks=1, zero_stage=None, resumable=True, created="2026", files={})
    write_manifest(tmp_path / "checkpoint-1", empty)
    assert problem(tmp_path / "checkpoint-1") == f"its {MANIFEST} names no file"


def test_deaths_while_a_file_is_written_whole_leave_nothing_that_piles_up(tmp_path: Path) -> None:
    mine = tmp_path / ".notes.new-draft"
    mine.touch()
    for number in range(3):
        assert dies_at(0, lambda number=number: write_whole(tmp_path / "config.yaml", str(number)))
    assert len(list(tmp_path.iterdir())) == 4
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]
