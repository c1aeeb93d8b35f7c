"""Identities that hold for whole families: what shifts cancel, where gradients sum to zero, which case is covered."""

import json
from pathlib import Path

import pytest
import torch

from alignlab import losses
from alignlab.losses import _examples
from alignlab.losses._examples import completions

OF_THE_MARGIN = [
    "dpo",
    {"name": "dpo", "label_smoothing": 0.2},
    {"name": "dpo", "smoothing": "robust", "label_smoothing": 0.2},
    {"name": "ipo", "normalise": "sum"},
    "hinge",
    "exo",
    "discopop",
    "odpo",
    "dpo_margin",
    "r_dpo",
    "modpo",
    "copg",
    "beta_dpo",
    "wpo",
    "spin",
]
NOT_OF_THE_MARGIN = ["dpop", "nca", "bco_pair", "apo", "sppo", "cal_dpo", "chi_po", "f_dpo", "kto_pair", "rpo"]


def slopes(spec):
    """Returns the gradients on the two sequence sums of each row."""
    loss = losses.build(spec)
    batch = _examples.example_batch(loss.needs)
    found = torch.autograd.grad(loss(batch).loss.sum(), [batch.chosen.logps, batch.rejected.logps])
    return [gradient[:, 0] for gradient in found]


@pytest.mark.parametrize("spec", OF_THE_MARGIN, ids=str)
def test_losses_of_the_margin_move_both_sides_alike(spec):
    """A loss of L_w - L_l only has dL/dL_w = -dL/dL_l."""
    chosen, rejected = slopes(spec)
    torch.testing.assert_close(chosen, -rejected)
    assert chosen.any()


@pytest.mark.parametrize("name", NOT_OF_THE_MARGIN)
def test_other_losses_do_not(name):
    chosen, rejected = slopes({"name": name, "beta": 1.0})
    assert (chosen + rejected).abs().max() > 0.01


REFERENCED = [name for name in losses.names() if losses.describe(name).needs.ref_logps]


@pytest.mark.parametrize("name", REFERENCED)
def test_shift_of_policy_and_reference_cancels(name):
    """Adding c to the log-probabilities of one sequence under both models changes no loss that sees their ratio only.

    rpo and mpo also see the likelihood itself, aot and hybrid_dpo sort or clip one model's margin, and wpo weighs
    pairs by the policy's likelihood: these move.
    """
    loss = losses.build(name)
    loss.bind(_examples.example_facts(loss.needs))
    batch = _examples.example_batch(loss.needs)
    before = loss(batch).loss
    with torch.no_grad():
        for scored in completions(batch):
            first = (slice(None), *[0] * (scored.logps.dim() - 1))
            scored.logps[first] += 0.7 * torch.arange(8)
            scored.ref_logps[first] += 0.7 * torch.arange(8)
            break
    moves = (loss(batch).loss - before).abs().max().item() > 1e-9
    assert moves == (name in {"rpo", "mpo", "weighted_sum", "aot", "hybrid_dpo", "wpo"})


def test_every_golden_case_is_tested():
    """The name of each golden method stands in some test of this folder."""
    folder = Path(__file__).parent
    names = {case["name"] for case in json.loads((folder / "golden.json").read_text())["cases"]}
    tests = "".join(path.read_text() for path in folder.glob("test_*.py"))
    variants = {"tdpo1": "tdpo{variant}", "tdpo2": "tdpo{variant}"}
    variants |= {"apo_zero": "apo_{variant}", "apo_down": "apo_{variant}"}
    assert len(names) == 60
    assert [name for name in sorted(names) if f'"{variants.get(name, name)}"' not in tests] == []


def test_every_loss_has_its_test_file():
    folder = Path(__file__).parent
    assert [name for name in losses.names() if not (folder / f"test_{name}.py").exists()] == []
