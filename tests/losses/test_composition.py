"""Losses that hold losses: what combines is the mathematics of its parts, what does not is refused with the reason."""

import pytest
import torch

from alignlab import losses
from alignlab.losses import Facts, _examples
from alignlab.losses.dpo import DPO

REFUSED = {
    "an f-divergence under KTO": (
        {"name": "f_dpo", "base": "kto"},
        r"loss\.base: KTO is no function .* alone, so the normaliser of an f-divergence does not cancel in it",
    ),
    "an f-divergence under APO": ({"name": "f_dpo", "base": "apo"}, "APO .*the normaliser .* does not cancel"),
    "an f-divergence under AOT": ({"name": "f_dpo", "base": "aot"}, "AOT .*the normaliser .* does not cancel"),
    "an f-divergence of means": ({"name": "f_dpo", "base": "ipo"}, r"loss\.base: IPO has a margin of its own"),
    "an f-divergence without a reference": ({"name": "f_dpo", "base": "simpo"}, "SimPO has a margin of its own"),
    "two betas": ({"name": "f_dpo", "beta": 0.1, "base": "dpo"}, r"loss\.beta belongs to the base"),
    "a margin under KTO": ({"name": "dpo_margin", "base": "kto"}, "KTO is no function of the margin alone"),
    "a margin under RPO": ({"name": "odpo", "base": "rpo"}, "RPO is no function of the margin alone"),
    "length under an f-divergence": ({"name": "r_dpo", "base": "f_dpo"}, "FDPO is no function of the margin alone"),
    "objectives under KTO": ({"name": "modpo", "base": "kto"}, "KTO is no function of the margin alone"),
    "objectives under groups": ({"name": "modpo", "base": "group_robust"}, "GroupRobust is no function of the margin"),
    "groups of sorted rows": ({"name": "group_robust", "base": "aot"}, "AOT couples the rows of a micro-batch"),
    "groups of KTO in one step": ({"name": "group_robust", "base": "kto"}, "write update_order: micro_batch"),
    "groups of groups": (
        {"name": "group_robust", "base": {"name": "group_robust", "weighting": "fixed"}, "weighting": "importance"},
        r"loss\.base: GroupRobust weights groups already",
    ),
    "groups of a sum with groups": (
        {
            "name": "group_robust",
            "base": {"name": "weighted_sum", "parts": ["dpo", "group_dro"]},
            "weighting": "importance",
        },
        r"loss\.base: WeightedSum weights groups already",
    ),
    "a sum of pairs and labels": ({"name": "weighted_sum", "parts": ["f_dpo", "kto"]}, "the same kind of data"),
    "a sum of rows and steps": ({"name": "weighted_sum", "parts": ["aot", "orpo"]}, "coupled over the same rows"),
    "a sum of other rewards": (
        {"name": "weighted_sum", "parts": ["modpo", {"name": "modpo", "weights": [0.4, 0.3, 0.3]}]},
        r"the same number of explicit rewards, found \[1, 2\]",
    ),
    "a sum of nothing": ({"name": "weighted_sum", "weights": [0, 0]}, "weights are all 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case):
    spec, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason):
        losses.build(spec)


@pytest.mark.parametrize("base", ["dpo", "hinge", "exo", "discopop", {"name": "dpo", "label_smoothing": 0.2}])
def test_reverse_kl_of_any_base_is_the_base(exact, base):
    found = losses.build("f_dpo", divergence="reverse_kl", base=base)(exact.pairs())
    expected = losses.build(base)(exact.pairs())
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.chosen_rewards, expected.chosen_rewards, rtol=0, atol=1e-14)


def test_hinge_under_the_forward_kl(exact):
    """max(0, 1 - beta (f(a) - f(b))) with f(x) = 1 - exp(-x)."""
    batch = exact.pairs()
    found = losses.build("f_dpo", base={"name": "hinge", "beta": 0.3})(batch).loss
    a, b = batch.chosen.log_ratios, batch.rejected.log_ratios
    torch.testing.assert_close(found, (1 - 0.3 * (torch.exp(-b) - torch.exp(-a))).clamp(min=0))


def test_sums_nest(exact):
    """2 (dpo + hinge) + 3 sft, and each part is logged once."""
    batch = exact.pairs()
    inner = {"name": "weighted_sum", "parts": ["dpo", "hinge"]}
    out = losses.build("weighted_sum", parts=[inner, {"name": "sft", "reduction": "sum"}], weights=[2, 3])(batch)
    dpo, hinge, sft = (losses.build(name)(batch).loss for name in ("dpo", "hinge", {"name": "sft", "reduction": "sum"}))
    torch.testing.assert_close(out.loss, 2 * (dpo + hinge) + 3 * sft)
    for name, part in {"weightedsum": dpo + hinge, "dpo": dpo, "hinge": hinge, "sft": sft}.items():
        torch.testing.assert_close(out.metrics[f"loss/{name}"][0], part.detach().sum())


HOLDING = sorted(name for name in losses.names() if "base" in losses.describe(name).defaults)


class Told(DPO):
    """DPO that notes what it is told of the data."""

    def bind(self, facts: losses.Facts) -> None:
        self.rows = facts.rows


@pytest.mark.parametrize("name", HOLDING)
def test_a_loss_that_is_held_learns_of_the_data(name):
    base = Told()
    options = {"weighting": "fixed"} if name == "group_robust" else {}
    loss = losses.build({"name": name, "base": base, **options})
    loss.bind(_examples.example_facts(loss.needs))
    assert base.rows == 100


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "odpo"}, r"^loss: odpo needs score_chosen > score_rejected in every row, found a difference of -1$"),
        (
            {
                "name": "weighted_sum",
                "parts": ["dpo", {"name": "group_robust", "base": {"name": "hypo", "base": "odpo"}}],
            },
            r"^loss\.parts\[1\]\.base\.base: odpo needs ",
        ),
        (
            {"name": "group_robust", "base": {"name": "modpo", "weights": [0.5, 0.5]}},
            r"^loss\.base: weights \[0\.5, 0\.5\] with 0 scorers leave 1 explicit rewards, but the rows carry 0",
        ),
        ({"name": "over_pairs", "base": {"name": "odpo", "base": "hinge"}}, None),
    ],
)
def test_what_data_do_not_allow_is_said_under_the_key_of_the_loss(spec, said):
    facts = Facts(10, {"only": 10}, ranges={"score_gap": (-1.0, 1.0)} if said else {"scores": (0.0, 1.0)})
    if said is None:
        losses.bind("loss", losses.build(spec), facts)
        return
    with pytest.raises(ValueError, match=said):
        losses.bind("loss", losses.build(spec), facts)
