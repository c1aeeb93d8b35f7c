"""What the trainer makes of checkpoints: saved only if sound, chosen, resumed bit for bit, never unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from dying import Died
from making import make_model, make_rows
from transformers import TrainerCallback

from alignlab import losses
from alignlab.checkpoints.folders import newest_good, problem
from alignlab.config.arguments import PreferenceConfig
from alignlab.losses._returned import RESERVED, RESERVED_PREFIXES
from alignlab.training.trainer import PreferenceTrainer


def trainer(
    tokenizer: Any, folder: Path, loss: Any = "dpo", groups: Any = ("a", "b"), evaluation: Any = None, **changes: Any
) -> Any:
    options: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "disable_tqdm": True}
    options |= {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3, **changes}
    args = PreferenceConfig(output_dir=str(folder), **options)
    return PreferenceTrainer(make_model(), args, loss, make_rows(12, groups=groups), evaluation, tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "lr_scheduler_kwargs: warmup_stable_decay cannot be made of {}: ",
        ),
        (
            {"lr_scheduler_kwargs": {"nope": 1}},
            "lr_scheduler_kwargs: linear cannot be made of {'nope': 1}: .* unexpected keyword argument 'nope'",
        ),
        ({"optim": "galore_adamw", "optim_target_modules": ["q_proj"]}, "optim: galore_adamw: .*galore_torch"),
    ],
)
def test_schedules_and_optimisers_that_cannot_be_made_name_their_key(
    tokenizer: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        trainer(tokenizer, tmp_path, "sft", **changes).train()


def test_a_hub_that_gives_no_place_is_said_before_anything_is_trained(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a connection, of a library below the hub's client, named no key."""

    def create(*args: Any, **options: Any) -> None:
        raise RuntimeError("no name for this address")

    monkeypatch.setattr("transformers.Trainer.init_hf_repo", create)
    with pytest.raises(ValueError, match=r"^push_to_hub: .* no name for this address; set HF_TOKEN"):
        trainer(tokenizer, tmp_path, "sft", push_to_hub=True)


def test_a_push_by_hand_says_whether_it_is_private(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Trainer.push_to_hub`` makes a repository that is not there yet, with what it was asked (5.19: but for that)."""
    made = trainer(tokenizer, tmp_path, "sft")

    def create(self: Any, **options: Any) -> None:
        raise RuntimeError(f"asked for {options}")

    monkeypatch.setattr("transformers.Trainer.init_hf_repo", create)
    with pytest.raises(ValueError, match=r"^push_to_hub: .* asked for \{'token': None(, 'private': True)?\}"):
        made.push_to_hub(private=True)


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


class Killed(TrainerCallback):  # type: ignore[misc]
    """Ends a run at the end of a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Died


def figures(run: Any) -> list[dict[str, float]]:
    """Returns the log of training without what the clock and the machine say."""
    timed = ("runtime", "per_second", "memory", "total_flos")
    return [
        {name: value for name, value in entry.items() if not any(one in name for one in timed)}
        for entry in run.state.log_history
    ]


def test_a_resumed_run_logs_what_it_would_have_logged(tokenizer: Any, tmp_path: Path) -> None:
    """Logs fall between checkpoints: sums since the last log were lost, and train_loss was that of one start, or 0."""
    times = {"max_steps": 6, "save_steps": 2, "logging_steps": 3}
    whole = trainer(tokenizer, tmp_path / "whole", **times)
    loss = whole.train().metrics["train_loss"]
    first = trainer(tokenizer, tmp_path / "run", **times)
    first.add_callback(Killed(5))
    with pytest.raises(Died):
        first.train()
    again = trainer(tokenizer, tmp_path / "run", **times)
    assert again.train("auto").metrics["train_loss"] == pytest.approx(loss, rel=1e-6)
    assert again.state.global_step == 6
    for found, expected in zip(figures(again), figures(whole), strict=True):
        assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
    once_more = trainer(tokenizer, tmp_path / "run", **times).train("auto")
    assert once_more.metrics["train_loss"] == pytest.approx(loss, rel=1e-6)


def test_killed_before_the_oldest_checkpoint_went_it_goes_with_the_next_start(tokenizer: Any, tmp_path: Path) -> None:
    options = {"save_total_limit": 1, "eval_strategy": "steps", "eval_steps": 1, "evaluation": make_rows(12)}
    options |= {"metric_for_best_model": "loss", "greater_is_better": True, "load_best_model_at_end": True}
    run = trainer(tokenizer, tmp_path, **options)
    run.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-2")
    again = trainer(tokenizer, tmp_path, **options)
    again.train("auto")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]
    again.rotate_checkpoints()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


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


def test_rows_of_other_groups_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    """As many groups, but other names: by index the weights of the loss would fit."""
    loss = {"name": "group_robust", "base": "dpo"}
    trainer(tokenizer, tmp_path, loss).train()
    again = trainer(tokenizer, tmp_path, loss, groups=("b", "c"), max_steps=4)
    with pytest.raises(
        ValueError, match=r"checkpoint-3: cannot go on: data.train: rows \(12 of hash \w+ -> 12 of hash"
    ):
        again.train(resume_from_checkpoint="auto")


def test_what_the_trainer_logs_is_kept_from_losses(tokenizer: Any, tmp_path: Path) -> None:
    """Every name in the log of a run that is not the loss's own is reserved; groups have names of the user's."""
    run = trainer(tokenizer, tmp_path, evaluation=make_rows(8, groups=("a", "b")), eval_strategy="steps", eval_steps=1)
    run.train()
    logged = {name for entry in run.state.log_history for name in entry if not name.startswith("group/")}
    assert len(logged) > 20
    assert {name for name in logged if not (name in RESERVED or name.startswith(RESERVED_PREFIXES))} == set()
