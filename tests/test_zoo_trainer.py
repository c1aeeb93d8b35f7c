"""Every loss of the zoo through the real trainer: packed and padded, fp32 and bf16, one process and two ranks."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zoo_ranks
from zoo_ranks import CASES, STEPS

from alignlab import losses
from alignlab.losses import Needs

Losses = list[float]


class Runs:
    """Runs of a module, each made once; sets are tokenised once for each kind of needs."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.tokenizer, self.folder = tokenizer, folder
        self.sets: dict[Needs, Any] = {}
        self.done: dict[tuple[str, str, bool], Losses] = {}
        zoo_ranks.save_scorer(folder)

    def __call__(self, case: str, layout: str, bf16: bool = False) -> Losses:
        """Returns the losses of a case's steps."""
        key = (case, layout, bf16)
        if key not in self.done:
            loss = losses.build(CASES[case])
            run = zoo_ranks.trainer(
                self.tokenizer, self.folder, loss, self.sets.get(loss.needs), layout=layout, bf16=bf16
            )
            self.sets[loss.needs] = run.data.train
            assert (run.layout == "padded") == (layout == "padded")
            assert run.accelerator.mixed_precision == ("bf16" if bf16 else "no")
            self.done[key] = zoo_ranks.trajectory(run)
        return self.done[key]


@pytest.fixture(scope="module")
def runs(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    gc.collect()
    gc.freeze()  # the Trainer collects garbage in every run
    yield Runs(tokenizer, tmp_path_factory.mktemp("zoo"))
    gc.unfreeze()


def close(expected: Losses) -> Any:
    """Within 1e-4; sums of squares in the 100000s, which float32 holds to 0.03, within 1e-6 of their size."""
    return pytest.approx(expected, abs=1e-4, rel=1e-6)


def all_finite(values: Losses) -> bool:
    return all(map(math.isfinite, values))


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_packed_equal_padded(case: str, runs: Runs) -> None:
    padded = runs(case, "padded")
    assert len(padded) == STEPS
    assert all_finite(padded)
    assert padded[0] != padded[-1], "the trajectory moves"
    assert runs(case, "packed") == close(padded)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", losses.names())
def test_ten_steps_in_bf16(name: str, layout: str, runs: Runs) -> None:
    found = runs(name, layout, bf16=True)
    assert len(found) == STEPS
    assert all_finite(found)
    assert found != runs(name, layout), "in float32 something else was computed"


def test_ten_steps_on_two_ranks(runs: Runs) -> None:
    """All cases in one launch; those that couple the rows of one rank's micro-batch depend on the split, and say so."""
    script = Path(zoo_ranks.__file__)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    done = subprocess.run([*torchrun, str(script), str(runs.folder)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((runs.folder / "ranks.json").read_text())
    assert found.keys() == CASES.keys()
    for case, result in found.items():
        assert result["ranks"] == 2
        assert all_finite(result["losses"]), case
        if losses.build(CASES[case]).needs.coupled == "micro_batch":
            assert len(result["losses"]) == STEPS, case
        else:
            assert result["losses"] == close(runs(case, "packed")), case


def test_parts_of_a_sum_are_logged_by_themselves(runs: Runs) -> None:
    """Each step logs loss/dpo and loss/sft; their weighted sum is the logged loss, also over two micro-batches."""
    loss = losses.build("weighted_sum", parts=["dpo", "sft"], weights=[1.0, 0.25])
    options: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run = zoo_ranks.trainer(runs.tokenizer, runs.folder, loss, **options)
    run.train()
    steps = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(steps) == STEPS
    for entry in steps:
        assert entry["loss"] == pytest.approx(entry["loss/dpo"] + 0.25 * entry["loss/sft"], abs=1e-5)
    assert steps[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["loss/sft"] == pytest.approx(steps[0]["nll_loss"], abs=1e-5)
