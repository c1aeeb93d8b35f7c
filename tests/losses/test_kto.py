"""KTO: golden cases, the KL term over ranks, and what does not carry a gradient."""

import math
import warnings

import pytest
import torch

from alignlab import losses
from alignlab.losses import Facts, Labelled, Scored, _examples


def options(case):
    return {name: case.hparams[name] for name in ("beta", "desirable_weight", "undesirable_weight")}


@pytest.mark.parametrize("setting", [0, 1])
@pytest.mark.parametrize("name", ["kto", "kto_clamped", "m_kto"])
def test_golden(golden, name, setting):
    """m_kto: only the assistant's tokens count, in the mismatched completions too."""
    mask = "mask_mt" if name == "m_kto" else "mask"
    case, batch = golden.case(name, setting), golden.labelled(mask, flip_kl=name == "kto_clamped")
    out = golden.check(name, setting, losses.build("kto", **options(case)), batch)
    for metric, expected in (("kl", "kl"), ("kl_raw", "kl_raw")):
        total, count = out.metrics[metric]
        golden.close(total / count, case.outputs[expected])


def test_golden_over_ranks(golden):
    """Ranks of 9 and 3 rows: with the sums of both, the losses and gradients are those of one batch of 12."""
    case, batch = golden.case("kto_distributed", 1), golden.labelled()
    loss = losses.build("kto", **options(case))
    ranks = [_examples.take(batch, torch.arange(start, stop)) for start, stop in ((0, 9), (9, 12))]
    parts = [loss.totals(rank) for rank in ranks]
    totals = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    rows = torch.cat([loss(rank, totals).loss for rank in ranks])
    golden.close(rows, case.outputs["per_example"])
    golden.close(rows.mean(), case.outputs["loss"])
    gradients = torch.cat(
        [torch.autograd.grad(rows.sum() / 12, rank.completions.logps, retain_graph=True)[0] for rank in ranks]
    )
    expected = [*case.seq_grad["d_loss_d_logp_chosen"], *case.seq_grad["d_loss_d_logp_rejected"]]
    golden.close(gradients[:, 0], expected)


def test_mean_of_ranks_differs(golden):
    """Unequal ranks: the golden mean of means (.782) is not the mean over all rows (.565), which is what we take."""
    kl = losses.build("kto").totals(golden.labelled())
    assert golden.case("kto_distributed", 0).outputs["kl"] == pytest.approx(0.78213, abs=1e-5)
    assert (kl["kl_sum"] / kl["kl_count"]).item() == pytest.approx(0.56503, abs=1e-5)


def single(log_ratio, kl, desirable=True):
    """Returns one completion with this log-ratio beside a mismatched one with log-ratio ``kl``."""
    mask = torch.ones(1, 1).bool()
    completion = Scored(torch.tensor([[log_ratio]]).requires_grad_(), mask, torch.zeros(1, 1))
    other = Scored(torch.tensor([[kl]]).requires_grad_(), mask, torch.zeros(1, 1))
    return Labelled(completion, torch.tensor([desirable]), other)


def test_value_by_hand():
    """r = 3, z0 = 1, beta .5: desirable 1.5 / (1 + e), undesirable .5 * e / (1 + e), with e = exp(.5 * (3 - 1))."""
    loss = losses.build("kto", beta=0.5, desirable_weight=1.5, undesirable_weight=0.5)
    assert loss(single(3.0, 1.0)).loss.item() == pytest.approx(1.5 / (1 + math.e), rel=1e-6)
    out = loss(single(3.0, 1.0, desirable=False))
    assert out.loss.item() == pytest.approx(0.5 * math.e / (1 + math.e), rel=1e-6)
    assert out.rewards.item() == 1.5


def test_half_the_weight_at_reference(exact, at_reference):
    out = losses.build("kto", desirable_weight=1.2)(at_reference(exact.labelled()))
    torch.testing.assert_close(out.loss, torch.tensor([0.6] * 6 + [0.5] * 6, dtype=torch.float64))


def test_negative_kl_is_clamped_after_the_sum():
    """Mismatched log-ratios 3 and -1: z0 = max(0, 1) = 1; a clamp before the mean would give 1.5."""
    loss = losses.build("kto")
    totals = [loss.totals(single(0.0, kl)) for kl in (3.0, -1.0)]
    out = loss(single(0.0, 3.0), {name: totals[0][name] + totals[1][name] for name in totals[0]})
    assert out.metrics["kl"][0].item() == 1.0


def test_no_gradient_through_kl():
    batch = single(1.0, 2.0)
    out = losses.build("kto")(batch)
    assert torch.autograd.grad(out.loss.sum(), batch.mismatched.logps, allow_unused=True) == (None,)


def test_far_rewards_keep_a_gradient():
    """At beta * r = 30 the loss is exp(-30), not the 0 of ``1 - sigmoid(30)`` in float32."""
    out = losses.build("kto", beta=1.0)(single(30.0, 0.0))
    assert out.loss.item() == pytest.approx(math.exp(-30), rel=1e-5)


def test_totals_make_mismatched_completions_superfluous():
    batch = single(1.0, 2.0)
    loss = losses.build("kto")
    totals, expected = loss.totals(batch), loss(batch).loss
    batch.mismatched = None
    torch.testing.assert_close(loss(batch, totals).loss, expected)
    with pytest.raises(ValueError, match="mismatched completions"):
        loss(batch)


def test_label_balance_warns():
    """30 to 10 rows at equal weights is a balance of 3; a desirable_weight of 1/3 makes it 1."""
    loss = losses.build("kto")
    with pytest.warns(UserWarning, match=r"balance of 3;.*desirable_weight 0\.333 gives 1"):
        loss.bind(Facts(rows=40, desirable=30, undesirable=10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.bind(Facts(rows=20, desirable=10, undesirable=10))


def test_options_out_of_range():
    with pytest.raises(ValueError, match=r"loss\.undesirable_weight must be a finite number >= 0, found -1"):
        losses.build("kto", undesirable_weight=-1.0)
    with pytest.raises(ValueError, match="both 0"):
        losses.build("kto", desirable_weight=0.0, undesirable_weight=0.0)
