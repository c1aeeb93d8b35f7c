"""The state of a loss comes back exactly, and never to other groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alignlab import losses
from alignlab.checkpoints.loss_state import load_loss, save_loss
from alignlab.losses import Facts


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
