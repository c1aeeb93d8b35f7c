"""FSDP2 as far as a CPU can: torch's own, on two ranks, over our step; transformers' needs an accelerator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsdp_ranks
import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fsdp")
    support = str(Path(fsdp_ranks.__file__).parent)
    paths = os.pathsep.join([support, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "ALIGNLAB_CACHE": str(folder / "cache")}
    words = [[sys.executable, fsdp_ranks.__file__, str(folder), str(rank)] for rank in range(fsdp_ranks.RANKS)]
    ranks = [subprocess.Popen(one, env=env, stderr=subprocess.PIPE, text=True) for one in words]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(fsdp_ranks.RANKS)]


@pytest.mark.slow
def test_a_step_on_sharded_weights_is_that_of_one_process(found: list[dict[str, Any]]) -> None:
    """DPO against another model: objective and every gradient, four rows on one rank or two on each of two."""
    for one in found:
        assert one["sharded"] == pytest.approx(one["loss"], abs=1e-6)
        assert one["gradient"] < 1e-6
        assert one["size"] > 1e-2


@pytest.mark.slow
def test_scores_before_sharding_are_those_of_the_sharded_model_under_mixed_precision(
    found: list[dict[str, Any]],
) -> None:
    """To the last bit: weights cast for a while, under autocast, are what FSDP2 gathers and accelerate runs."""
    assert [one["scores"] for one in found] == [0.0, 0.0]
