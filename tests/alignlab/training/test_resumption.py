"""Going on from a checkpoint of another config: what is refused, what is applied, and longer training by schedule."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows
from peft import LoraConfig
from transformers import TrainerCallback

from alignlab.config import PreferenceConfig
from alignlab.training import PreferenceTrainer

RATE = 1e-3
ROWS = make_rows(12)


class Rates(TrainerCallback):  # type: ignore[misc]
    """Notes the learning rate with which each step is taken."""

    def __init__(self) -> None:
        self.taken: dict[int, float] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.taken[state.global_step + 1] = optimizer.param_groups[0]["lr"]


def trainer(
    tokenizer: Any, folder: Path, *, rows: Any = ROWS, loss: Any = "dpo", peft: Any = None, **changes: Any
) -> tuple[Any, dict[int, float]]:
    """Returns a run of three steps of four rows an epoch, each of which is saved, and the rates of its steps."""
    options: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "disable_tqdm": True}
    options |= {"per_device_train_batch_size": 4, "learning_rate": RATE, "lr_scheduler_type": "constant", **changes}
    args = PreferenceConfig(output_dir=str(folder), **options)
    rates = Rates()
    run = PreferenceTrainer(make_model(), args, loss, rows, None, tokenizer, peft, callbacks=[rates])
    return run, rates.taken


def resumed(tokenizer: Any, folder: Path, checkpoint: str = "auto", **changes: Any) -> tuple[Any, dict[int, float]]:
    run, rates = trainer(tokenizer, folder, **changes)
    run.train(resume_from_checkpoint=checkpoint if checkpoint == "auto" else str(folder / checkpoint))
    return run, rates


def same_weights(one: Any, other: Any) -> bool:
    return all(map(torch.equal, one.model.state_dict().values(), other.model.state_dict().values()))


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with the checkpoints of a constant schedule."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("three")
        patch.setenv("ALIGNLAB_CACHE", str(folder / "scores"))
        trainer(tokenizer, folder)[0].train()
    return folder


@pytest.fixture
def folder(three_steps: Path, tmp_path: Path) -> Path:
    """A copy of it of one's own."""
    return Path(shutil.copytree(three_steps, tmp_path / "run"))


# ---- what cannot go on, and what must be agreed to ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"loss": "ipo"}, "loss.name (dpo -> ipo)"),
        ({"optim": "sgd"}, "optim (adamw_torch"),
        ({"seed": 7}, "seed (42 -> 7)"),
        ({"length_window": 2}, "length_window (0 -> 2)"),
        ({"rows": ROWS[:6]}, "data.train: rows (12 "),
        ({"rows": [*ROWS[1:], ROWS[0]]}, "data.train: rows (12 "),
        ({"max_length": 12}, "data.train: rows (12 "),
        ({"peft": LoraConfig(r=4, target_modules="all-linear")}, "peft.r (None -> 4)"),
    ],
)
def test_what_cannot_go_on_is_refused_with_its_key(
    tokenizer: Any, folder: Path, changes: dict[str, Any], found: str
) -> None:
    """Also where changes are agreed to; nothing is trained."""
    run, rates = trainer(tokenizer, folder, max_steps=4, resume_with_changes=True, **changes)
    with pytest.raises(ValueError, match=r"checkpoint-3: cannot go on: ") as error:
        run.train(resume_from_checkpoint="auto")
    assert found in str(error.value)
    assert str(error.value).endswith("; start a new run, in another output_dir")
    assert rates == {}


def test_what_changes_the_run_must_be_agreed_to(tokenizer: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A table of three kinds, then the keys that are not agreed to; fewer steps are a change, more are none."""
    changes: dict[str, Any] = {
        "learning_rate": 1e-4,
        "adam_beta2": 0.9,
        "loss": {"name": "dpo", "beta": 0.5},
        "max_steps": 2,
    }
    run, _ = trainer(tokenizer, folder, logging_steps=7, save_steps=2, **changes)
    with pytest.raises(ValueError, match=r"changes the run: ") as error:
        run.train(resume_from_checkpoint="auto")
    assert str(error.value) == (
        f"resume_from_checkpoint: {folder}/checkpoint-3: changes the run: adam_beta2 (0.999 -> 0.9), "
        "learning_rate (0.001 -> 0.0001), loss.beta (0.1 -> 0.5), max_steps (3 -> 2); to go on with what is new, set "
        "resume_with_changes: true"
    )
    table = caplog.messages[-1].splitlines()
    assert table[0] == f"{folder}/checkpoint-3 was written by another config:"
    assert table[1] == "  changes the run  adam_beta2: 0.999 -> 0.9"
    assert "  harmless         logging_steps: 10 -> 7" in table
    assert "  harmless         save_steps: 1 -> 2" in table


def test_a_loss_is_what_it_computes_not_how_it_is_written(tokenizer: Any, folder: Path) -> None:
    """An option with the value of its default is no difference, and neither is anything else of the same run."""
    run, _ = resumed(tokenizer, folder, loss={"name": "dpo", "beta": 0.1})
    assert [one.key for one in run.differences] == ["output_dir"]


def test_changes_are_applied_once_agreed_to(tokenizer: Any, folder: Path) -> None:
    """Rate, decay and betas of the optimiser are those of the new config, its moments those of the checkpoint."""
    changes: dict[str, Any] = {"learning_rate": 1e-4, "weight_decay": 0.5, "adam_beta2": 0.9, "adam_epsilon": 1e-3}
    run, rates = resumed(tokenizer, folder, max_steps=5, resume_with_changes=True, **changes)
    assert rates == {4: 1e-4, 5: 1e-4}
    groups = run.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert {group["betas"] for group in groups} == {(0.9, 0.9)}
    assert {group["eps"] for group in groups} == {1e-3}
    assert {int(state["step"]) for state in run.optimizer.state.values()} == {5}


def test_another_schedule_is_the_one_that_runs(tokenizer: Any, folder: Path) -> None:
    """From constant to linear over six steps, half of which are done: 3/6, 2/6 and 1/6 of the rate are left."""
    changes: dict[str, Any] = {"lr_scheduler_type": "linear", "max_steps": 6}
    _, rates = resumed(tokenizer, folder, resume_with_changes=True, **changes)
    assert rates == pytest.approx({4: RATE / 2, 5: RATE / 3, 6: RATE / 6}, rel=1e-12)


def test_what_is_harmless_is_taken(tokenizer: Any, folder: Path) -> None:
    """Intervals of logging and saving are those of the new config; four rows are also two and two.

    Step 3 is in the log as the last of the run before.
    """
    changes: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run, rates = resumed(tokenizer, folder, max_steps=7, logging_steps=1, save_steps=3, **changes)
    assert set(rates) == {4, 5, 6, 7}
    assert [entry["step"] for entry in run.state.log_history if "loss" in entry] == [3, 4, 5, 6, 7]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (1, 2, 3, 6, 7)]


def test_the_number_of_rows_a_step_changes_between_epochs_only(tokenizer: Any, folder: Path) -> None:
    """Three steps of four rows are an epoch. Steps are counted anew, as if all had had two rows: six are done."""
    epochs = {"max_steps": -1, "num_train_epochs": 2.0, "resume_with_changes": True, "lr_scheduler_type": "linear"}
    run, _ = trainer(tokenizer, folder, per_device_train_batch_size=2, **epochs)
    with pytest.raises(ValueError, match=r"cannot go on: rows a step within an epoch \(at 0.667\) \(4 -> 2\)"):
        run.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    run, _ = trainer(tokenizer, folder, per_device_train_batch_size=2, max_steps=12)
    with pytest.raises(ValueError, match=r"changes the run: rows a step \(4 -> 2\)"):
        run.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    run, rates = resumed(tokenizer, folder, "checkpoint-3", per_device_train_batch_size=2, **epochs)
    assert rates == pytest.approx({step: RATE * (13 - step) / 12 for step in range(7, 13)}, rel=1e-12)
    assert (run.state.global_step, run.state.epoch) == (12, 2.0)
    state = json.loads((folder / "checkpoint-12" / "trainer_state.json").read_text())
    assert (state["global_step"], state["epoch"]) == (12, 2.0)


def test_a_checkpoint_that_says_nothing_is_taken_with_a_warning(
    tokenizer: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of an older version, whose manifest does not name run.json either."""
    shutil.move(folder / "checkpoint-3", folder / "old")
    for name in ("run.json", "manifest.json"):
        (folder / "old" / name).unlink()
    run, _ = trainer(tokenizer, folder, max_steps=4)
    run.train(resume_from_checkpoint=str(folder / "old"))
    assert run.state.global_step == 4
    assert "does not say what it is of: nothing is compared" in caplog.text


# ---- longer training -----------------------------------------------------------------------------------------------


def both(tokenizer: Any, tmp_path: Path, **schedule: Any) -> Any:
    """Returns a run of three steps made six, and one of six from the start, with the rates of their steps."""
    trainer(tokenizer, tmp_path / "longer", **schedule)[0].train()
    later = resumed(tokenizer, tmp_path / "longer", max_steps=6, **schedule)
    whole = trainer(tokenizer, tmp_path / "whole", max_steps=6, **schedule)
    whole[0].train()
    return later, whole


@pytest.mark.parametrize("schedule", [{}, {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}])
def test_longer_at_a_constant_rate_is_the_long_run_bit_for_bit(
    tokenizer: Any, tmp_path: Path, schedule: dict[str, Any]
) -> None:
    (later, rates), (whole, expected) = both(tokenizer, tmp_path, **schedule)
    assert rates == {step: expected[step] for step in (4, 5, 6)}
    assert same_weights(later, whole)


@pytest.mark.parametrize(
    ("name", "share"),
    [("linear", lambda x: 1 - x), ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2)],
)
def test_longer_under_a_schedule_that_ends_follows_the_long_one(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, share: Any
) -> None:
    """The steps to come have the rates of a run of six, from the first of them on; the first three had others.

    So the weights are not those of the long run: what was done under the old schedule stays done.
    """
    (later, rates), (whole, expected) = both(tokenizer, tmp_path, lr_scheduler_type=name)
    assert rates == pytest.approx({step: RATE * share((step - 1) / 6) for step in (4, 5, 6)}, rel=1e-12)
    assert rates == {step: expected[step] for step in (4, 5, 6)}
    assert not same_weights(later, whole)
    assert f"the learning rate of step 4 is {rates[4]:.4g}; it was to be 0" in caplog.text
