"""Every loss of the folder keeps the contract."""

import pytest
import torch

from alignlab import losses
from alignlab.losses import Listed, Loss, LossOutput, Needs, Pairs, Scored, _contract, _examples

VARIANTS = [
    {"name": "dpo", "smoothing": "robust", "label_smoothing": 0.2},
    {"name": "ipo", "normalise": "sum"},
    {"name": "sft", "data": "labelled", "reduction": "example"},
    {"name": "sft", "reduction": "sum"},
    {"name": "orpo", "nll_scope": "full"},
    {"name": "orpo", "nll_reduction": "example"},
    {"name": "tdpo", "variant": 1},
    {"name": "modpo", "weights": [0.5, 0.2, 0.1, 0.2], "scorers": ["helpful"]},
    {"name": "group_robust", "base": "ipo", "mode": "total", "step_size": 0.5},
    {"name": "group_robust", "base": "tdpo", "mode": "batch_mean", "chi": 0.5, "group_size_correction": 1.0},
    {"name": "group_robust", "base": "kto", "weighting": "importance"},
    {"name": "group_robust", "base": "orpo", "weighting": "fixed"},
    {"name": "group_robust", "base": "kto", "update_order": "micro_batch"},
    {"name": "group_robust", "base": "apo_zero_unpaired"},
    {"name": "group_robust", "base": "bco", "weighting": "importance"},
    {"name": "group_dro", "min_var_weight": 0.2, "step_size": 1.0, "base": "odpo"},
    {"name": "weighted_sum", "parts": ["kto", {"name": "sft", "data": "labelled"}, "bco"]},
    {"name": "weighted_sum", "parts": ["tdpo", "orpo", "kto_pair"], "weights": [1, 0.5, -0.1]},
    {"name": "dpo_margin", "base": "ipo"},
    {"name": "modpo", "base": "hinge"},
    {"name": "r_dpo", "base": {"name": "simpo", "gamma": 0.5}},
    {"name": "beta_dpo", "filter_ratio": 0.2},
    {"name": "sppo", "probabilities": "hard"},
    {"name": "slic_hf", "target": "gold", "nll_reduction": "token"},
    {"name": "tpo", "length_normalised": True, "nll_reduction": "sum"},
    {"name": "f_dpo", "divergence": "js"},
    {"name": "f_dpo", "divergence": "alpha", "alpha": 2.0},
    {"name": "chi_po", "clip": 4.0},
    {"name": "apo", "variant": "down"},
    {"name": "aot", "paired": False},
    {"name": "wpo", "clamp": False},
    {"name": "alphapo", "alpha": -0.2},
    {"name": "ld_dpo", "alpha": 0.0},
    {"name": "cpo", "nll_reduction": "sum", "label_smoothing": 0.1},
    {"name": "bradley_terry", "margin": True, "centring": 0.01, "label_smoothing": 0.1},
    {"name": "reward_regression", "outputs": 3, "distance": "huber"},
    {"name": "group_robust", "base": "bradley_terry"},
    {"name": "nca", "data": "lists", "alpha": 0.5},
    {"name": "sppo", "data": "lists", "beta": 0.5},
    {"name": "infonca", "alpha": 0.0},
    {"name": "infonca", "alpha": 0.5, "beta": 1.0},
    {"name": "lipo_lambda", "labels": "ranks"},
    {"name": "pro", "temperature": False, "nll_reduction": "example"},
    {"name": "rrhf", "nll_weight": 0.0, "rank_weight": 100.0},
    {"name": "mppo", "variant": "mns"},
    {"name": "mppo", "variant": "mcm"},
    {"name": "mppo", "variant": "mcs"},
    {"name": "over_pairs", "base": "tdpo", "reduction": "sum"},
    {"name": "over_pairs", "base": "odpo"},
    {"name": "over_pairs", "base": "wpo"},
    {"name": "over_pairs", "base": {"name": "modpo", "scorers": ["helpful"], "weights": [0.5, 0.2, 0.3]}},
    {"name": "over_pairs", "base": {"name": "orpo", "nll_scope": "full", "nll_reduction": "example"}},
    {"name": "weighted_sum", "parts": ["plackett_luce", "rrhf", "over_pairs"]},
    {"name": "group_robust", "base": "plackett_luce"},
    {"name": "over_pairs", "base": "bradley_terry"},
]


@pytest.mark.parametrize("spec", [*losses.names(), *VARIANTS], ids=str)
def test_contract(spec):
    assert _contract.check(losses.build(spec)) == []


class Broken(Loss):
    """Breaks one clause of the contract."""

    needs = Needs(ref_logps=True)

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.seen = 0
        if how == "evaluation":
            self.needs = Needs(ref_logps=True, coupled="step", totals_in_evaluation=False)

    def forward(self, batch, totals=None):
        z = batch.chosen.log_ratios - batch.rejected.log_ratios
        if self.how == "reduced":
            return LossOutput(-torch.nn.functional.logsigmoid(z).mean())
        if self.how == "overflow":
            return LossOutput(torch.log1p(torch.exp(-z)))
        if self.how == "garbage":
            return LossOutput((batch.chosen.logps * batch.chosen.mask).sum(-1) - batch.rejected.sum_logps)
        if self.how == "detached":
            return LossOutput(-z.detach() * z)
        if self.how == "rewards":
            return LossOutput(-z, chosen_rewards=z, rejected_rewards=z)
        if self.how == "coupled":
            return LossOutput(-z / z.detach().abs().mean())
        if self.how == "position":
            return LossOutput(-z * torch.arange(len(z)))
        if self.how == "evaluation":
            scale = 1.0 if self.training else z.detach().mean()
            return LossOutput(-z * scale)
        if self.how == "half":
            chosen = torch.where(batch.chosen.mask, batch.chosen.logps, 0).sum(-1)
            return LossOutput(chosen - torch.where(batch.rejected.mask, batch.rejected.logps, 0).sum(-1))
        assert self.how == "state"
        return LossOutput(-z * (1 + self.seen))

    def update(self, totals):
        self.seen += 1


@pytest.mark.parametrize(
    ("how", "check"),
    [
        ("reduced", "shapes"),
        ("overflow", "finite"),
        ("garbage", "padding"),
        ("detached", "gradient"),
        ("rewards", "shapes"),
        ("coupled", "totals"),
        ("evaluation", "totals"),
        ("position", "row order"),
        ("half", "half precision"),
        ("state", "state"),
    ],
)
def test_each_breach_is_found(how, check):
    assert check in {finding.check for finding in _contract.check(Broken(how))}


def test_undeclared_needs_are_found():
    """A loss that reads the reference and does not say so gets none."""

    def careless(batch):
        return -batch.chosen.log_ratios

    findings = _contract.check(losses.from_function(careless))
    assert all("Scored.ref_logps" in finding.message for finding in findings)
    assert {finding.check for finding in findings} == _contract.CHECKS.keys() - {"lists"}, "no list, nothing to find"


@pytest.mark.parametrize("how", ["first", "hole"])
def test_a_breach_of_lists_is_found(how):
    """A loss that knows the first completion of a list from the others, and one that counts the holes."""

    def careless(batch):
        ratios = batch.completions.log_ratios
        return -ratios[:, 0] if how == "first" else -ratios.mean(1)

    loss = losses.from_function(careless, needs=Needs(data="lists", ref_logps=True))
    found = [str(finding) for finding in _contract.check(loss)]
    expected = {"first": ["order", "holes"], "hole": ["holes"]}[how]
    assert sorted({line.split(" of ")[0] for line in found}) == sorted(f"lists: {name}" for name in expected)


def test_rewards_of_lists_are_one_a_completion():
    def row_rewards(batch):
        return LossOutput(-batch.completions.sum_logps.sum(1), rewards=torch.zeros(len(batch)))

    loss = losses.from_function(row_rewards, needs=Needs(data="lists"))
    with pytest.raises(ValueError, match=r"rewards must be None or a tensor \[8, 4\] on cpu, found a tensor \[8\]"):
        loss(_examples.example_batch(loss.needs))


def test_means_of_holes_are_zero_and_have_no_gradient():
    """Means -1.5 and, of a hole, 0; the slopes are 1/2 on each token that counts, and 0 elsewhere."""
    logps = torch.tensor([[[-1.0, -2.0], [float("nan"), -1.0]]], requires_grad=True)
    scored = Scored(logps, torch.tensor([[[True, True], [False, False]]]))
    assert scored.mean_logps.tolist() == [[-1.5, 0.0]]
    (gradient,) = torch.autograd.grad(scored.mean_logps.sum(), [logps])
    assert gradient.tolist() == [[[0.5, 0.5], [0.0, 0.0]]]
    assert Listed(scored, torch.zeros(1, 2)).present.tolist() == [[True, False]]


def test_check_leaves_the_loss_alone():
    loss = losses.build("group_robust", step_size=0.5).eval()
    _contract.check(loss)
    assert not loss.training
    assert loss.group_names == ()


@pytest.mark.parametrize("name", losses.names())
def test_wrong_kind_of_batch_is_refused(name):
    """A loss given another kind of rows than it declares says so; sft takes pairs and labelled rows."""
    loss = _contract.prepared(losses.build(name))
    for other in {"pairs", "labelled", "lists"} - {loss.needs.data}:
        batch = _examples.example_batch(Needs(data=other, ref_logps=True))
        if name == "sft" and other != "lists":
            assert loss(batch).loss.shape == (8,)
            continue
        with pytest.raises(ValueError, match=r"compares pairs|reads labelled|ranks lists|needs"):
            loss(batch)


def test_rows_of_weight_zero_count_nowhere():
    """A filler row of weight 0 changes neither totals nor metrics nor the other rows' losses."""
    for name in losses.names():
        loss = _contract.prepared(losses.build(name))
        if loss.needs.coupled == "micro_batch":
            continue
        batch = _examples.example_batch(loss.needs)
        kept = _examples.take(batch, torch.arange(6))
        batch.weight = torch.tensor([1.0] * 6 + [0.0] * 2, dtype=torch.float64)
        found, expected = loss(batch), loss(kept)
        torch.testing.assert_close(found.loss[:6], expected.loss, msg=lambda m, name=name: f"{name}: {m}")
        for metric, values in expected.metrics.items():
            for one, other in zip(found.metrics[metric], values, strict=True):
                torch.testing.assert_close(one, other, msg=lambda m, metric=metric: f"{metric}: {m}")


def test_scored_refuses_wrong_shapes():
    with pytest.raises(ValueError, match="mask must be bool"):
        Scored(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"ref_logps has shape \(2, 2\)"):
        Scored(torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.zeros(2, 2))


def test_scored_sums():
    """Sum -3 over 2 counted tokens, reference -1: log-ratio -2, mean -1.5; the NaN under the mask is not seen."""
    scored = Scored(
        torch.tensor([[-1.0, -2.0, float("nan")]]),
        torch.tensor([[True, True, False]]),
        torch.tensor([[-0.5, -0.5, float("inf")]]),
        kl=torch.tensor([[0.25, 0.5, float("nan")]]),
    )
    assert scored.sum_logps.item() == -3.0
    assert scored.mean_logps.item() == -1.5
    assert scored.log_ratios.item() == -2.0
    assert scored.sum_kl.item() == 0.75
    assert len(Pairs(scored, scored)) == 1
