"""Checkpoints: whole or not there, checked file by file, rotated without losing the last good one; one run a folder."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from transformers.trainer_utils import get_last_checkpoint

from alignlab import losses
from alignlab.checkpoints.early_stop import WallClock
from alignlab.checkpoints.folders import check, clean, holds_checkpoints, newest_good, problem, rotate, written_aside
from alignlab.checkpoints.lock import HOLDER, only_run_in
from alignlab.checkpoints.loss_state import load_loss, save_loss
from alignlab.checkpoints.manifest import MANIFEST, read_manifest
from alignlab.config.arguments import PreferenceConfig
from alignlab.config.checks import duration
from alignlab.losses import Facts
from alignlab.training.trainer import PreferenceTrainer


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
    check(folder)  # safetensors and weights_only: no code runs
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


SCRIPT = "import sys, time; from pathlib import Path; from alignlab.checkpoints.lock import only_run_in\n"
SCRIPT += "with only_run_in(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_one_run_a_folder_until_it_dies(tmp_path: Path, monkeypatch: Any) -> None:
    """Refused while another process lives, naming it; free as soon as it is killed; held twice by one process."""
    other = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    monkeypatch.setattr("alignlab.checkpoints.lock._PATIENCE", 0.1)
    with (
        pytest.raises(ValueError, match=rf"another run is writing to .* \(process {other.pid} on "),
        only_run_in(tmp_path),
    ):
        pass
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with only_run_in(tmp_path), only_run_in(tmp_path):
        assert (tmp_path / HOLDER).read_text().startswith(f"process {os.getpid()} on ")


# ---- what the trainer makes of it ----------------------------------------------------------------------------------


def trainer(
    tokenizer: Any, folder: Path, loss: Any = "dpo", groups: Any = ("a", "b"), evaluation: Any = None, **changes: Any
) -> Any:
    options: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "disable_tqdm": True}
    options |= {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3, **changes}
    args = PreferenceConfig(output_dir=str(folder), **options)
    return PreferenceTrainer(make_model(), args, loss, make_rows(12, groups=groups), evaluation, tokenizer)


def test_nothing_but_zero_is_unpickled(tokenizer: Any, tmp_path: Path) -> None:
    """Optimiser, scheduler and random states load with weights_only; training_args.bin is never loaded.

    A pickle that would call a function in their place is refused by torch, with trust_checkpoint, too.
    """
    trainer(tokenizer, tmp_path, save_total_limit=1).train()
    folder = tmp_path / "checkpoint-3"
    loaded = {path.name for path in folder.iterdir() if path.suffix in (".pt", ".pth")}
    assert loaded == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in ("training_args.bin", "optimizer.pt"):
        with zipfile.ZipFile(folder / name) as archive:
            prefix = archive.namelist()[0].split("/")[0]
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr(f"{prefix}/data.pkl", pickle.dumps(Evil()))
            archive.writestr(f"{prefix}/version", "3\n")
    again = trainer(tokenizer, tmp_path, max_steps=4, trust_checkpoint=True)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        again.train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "ran").exists()


def test_true_wants_a_checkpoint_and_auto_takes_none(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint that can be resumed"):
        trainer(tokenizer, tmp_path).train(resume_from_checkpoint=True)
    run = trainer(tokenizer, tmp_path)
    run.train(resume_from_checkpoint="auto")
    assert run.state.global_step == 3


def test_a_checkpoint_of_the_last_step_is_not_trained_beyond(tokenizer: Any, tmp_path: Path) -> None:
    """Three steps an epoch, four in all: resumed after the fourth, which is within an epoch, nothing is trained."""
    first = trainer(tokenizer, tmp_path, max_steps=4)
    first.train()
    again = trainer(tokenizer, tmp_path, max_steps=4)
    again.train(resume_from_checkpoint="auto")
    assert again.state.global_step == 4
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_save_total_limit_keeps_the_best_and_the_newest(tokenizer: Any, tmp_path: Path) -> None:
    """The loss falls, and the greatest is called the best here: the first checkpoint outlives the second to fourth."""
    run = trainer(
        tokenizer, tmp_path, max_steps=5, save_total_limit=2, eval_strategy="steps", eval_steps=1,
        metric_for_best_model="loss", evaluation=make_rows(12), greater_is_better=True, load_best_model_at_end=True,
    )  # fmt: skip
    run.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-5"]
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")
    for name in ("checkpoint-1", "checkpoint-5"):
        assert problem(tmp_path / name) is None


def test_weights_that_are_not_numbers_are_not_saved(tokenizer: Any, tmp_path: Path) -> None:
    run = trainer(tokenizer, tmp_path)
    run.train()
    with torch.no_grad():
        run.model.lm_head.weight[3, 2] = float("nan")
    run.state.global_step = 7
    with pytest.raises(
        FloatingPointError, match=r"after step 7 1 trained weights are not finite, first lm_head.weight"
    ):
        run._save_checkpoint(run.model, None)
    assert newest_good(tmp_path) == tmp_path / "checkpoint-3"


def test_a_gradient_that_is_not_a_number_does_not_reach_the_weights(tokenizer: Any, tmp_path: Path) -> None:
    """The classic: `where` over a branch that is NaN has a sound value, and NaN as its gradient."""

    def broken(batch: losses.Pairs) -> torch.Tensor:
        margin = batch.rejected.sum_logps - batch.chosen.sum_logps
        return torch.where(margin > float("inf"), (margin * 0).sqrt(), margin)  # d sqrt(x) / dx at 0 is infinite

    run = trainer(tokenizer, tmp_path, broken)
    before = [weight.detach().clone() for weight in run.model.parameters()]
    with pytest.raises(
        FloatingPointError, match="the gradient of step 1 is not finite, though the loss of every row is"
    ):
        run.train()
    assert all(torch.equal(one, other) for one, other in zip(run.model.parameters(), before, strict=True))


def test_the_state_of_other_groups_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    """As many groups, but other names: by index the weights would fit."""
    loss = {"name": "group_robust", "base": "dpo"}
    trainer(tokenizer, tmp_path, loss).train()
    again = trainer(tokenizer, tmp_path, loss, groups=("b", "c"), max_steps=4)
    with pytest.raises(
        ValueError, match=r"the state of the groups \['a', 'b'\], but the training data has \['b', 'c'\]"
    ):
        again.train(resume_from_checkpoint="auto")


def test_state_that_is_not_by_group_does_not_ask_for_groups(tmp_path: Path) -> None:
    """beta_dpo's running mean belongs to no group; group_robust's weights come back under the same names."""
    one = losses.build("beta_dpo")
    save_loss(one, tmp_path, ["a"])
    load_loss(losses.build("beta_dpo"), tmp_path, ["z"])
    two = losses.build("group_robust")
    two.bind(Facts(4, {"a": 1, "b": 3}))
    two.log_weights = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    save_loss(two, tmp_path, ["a", "b"])
    back = losses.build("group_robust")
    back.bind(Facts(4, {"a": 1, "b": 3}))
    load_loss(back, tmp_path, ["a", "b"])
    assert torch.equal(back.state_dict()["log_weights"], two.state_dict()["log_weights"])
    with pytest.raises(ValueError, match="resume with the data that the run began with"):
        load_loss(back, tmp_path, ["b", "a"])


@pytest.mark.parametrize("key", ["enable_jit_checkpoint", "save_on_each_node"])
def test_what_would_save_in_another_way_is_refused(key: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {key: True}
    with pytest.raises(ValueError, match=f"{key}: True cannot work here: "):
        PreferenceConfig(output_dir=str(tmp_path), **options)


# ---- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (90, 90.0), ("90", 90.0), (0.5, 0.5), ("01:30:05", 5405.0), ("2-00:00:10", 172810.0)],
)
def test_durations(given: Any, seconds: float | None) -> None:
    assert duration("max_wall_time", given) == seconds


@pytest.mark.parametrize("given", [0, -1, "1:30", "00:60:00", "soon", "nan", float("inf")])
def test_wrong_durations(given: Any) -> None:
    with pytest.raises(ValueError, match=r"max_wall_time: expected seconds, or time as \[D-\]HH:MM:SS, more than 0"):
        duration("max_wall_time", given)


def test_the_clock_leaves_time_for_a_step_and_a_save_twice() -> None:
    """Of 10,000,000 s nothing is used. Needed: 2 (step + save), with an evaluation due 2 (step + save + evaluation)."""
    clock = WallClock(1e7)
    assert clock.save == 5e5  # before the first save: 5 % of the limit
    clock.step = 4.4e6
    assert not clock.is_short(evaluates=False)  # 2 * 4.9e6 < 1e7
    clock.step = 4.6e6
    assert clock.is_short(evaluates=False)  # 2 * 5.1e6 > 1e7
    clock.step, clock.evaluation = 1e6, 3.9e6
    assert not clock.is_short(evaluates=False)
    assert clock.is_short(evaluates=True)
    clock.save_done()
    assert clock.save < 100  # measured now, no longer taken from the limit
    assert not clock.is_short(evaluates=True)  # 2 * 4.9e6 < 1e7
    clock.limit = 2 * 4.9e6 + 5  # 10 s are for ending
    assert clock.is_short(evaluates=True)
