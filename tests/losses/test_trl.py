"""TRL's own loss code, run on the golden pairs through a model that returns their scores, gives our numbers.

Where TRL means something else, the difference stands beside the case.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from alignlab import losses

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl import DPOTrainer, KTOTrainer
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer


class Scores(torch.nn.Module):
    """Stands where TRL expects a model: returns given per-token scores, whatever it is asked."""

    def __init__(self, logps, second_moment=None):
        super().__init__()
        zeros = torch.zeros_like(logps).detach()
        moment = zeros if second_moment is None else second_moment
        self.is_gradient_checkpointing = False
        self.out = SimpleNamespace(
            log_probs=logps, log_sum_sq_probs=moment, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    def forward(self, **_):
        return self.out


def stacked(pairs, name):
    """Returns a field of chosen, then rejected rows, with zeros where nothing counts, as TRL's model gives it."""
    sides = [torch.where(s.mask, getattr(s, name), 0.0) for s in (pairs.chosen, pairs.rejected)]
    width = max(side.shape[1] for side in sides)
    return torch.cat([torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in sides])


def trl_dpo(pairs, loss_types=("sigmoid",), loss_weights=None, beta=0.1, **options):
    """Returns what DPOTrainer._compute_loss makes of the pairs."""
    mask = stacked(SimpleNamespace(chosen=_masked(pairs.chosen), rejected=_masked(pairs.rejected)), "ones").bool()
    completion_mask = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1).long()
    moment = stacked(pairs, "second_moment") if options.get("use_weighting") else None
    same = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=Scores(torch.zeros(1, 1)),
        ref_model=Scores(stacked(pairs, "ref_logps")),
        accelerator=same,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=options.pop("discopop_tau", 0.05)),
        _metrics={"train": defaultdict(list)},
        loss_types=list(loss_types),
        loss_weights=loss_weights or [1.0] * len(loss_types),
        beta=beta,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        _total_train_tokens=0,
        _tp_size=1,
    )
    defaults = {"ld_alpha": None, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl"}
    defaults |= {"f_alpha_divergence_coef": 0.5, "use_weighting": False}
    vars(trainer).update(defaults | options)
    inputs = {"completion_mask": completion_mask, "input_ids": completion_mask, "attention_mask": completion_mask}
    return DPOTrainer._compute_loss(trainer, Scores(stacked(pairs, "logps"), moment), inputs, False)


def _masked(scored):
    return SimpleNamespace(mask=scored.mask, ones=scored.mask.double())


SAME = {
    "sigmoid": ({}, {"name": "dpo"}),
    "hinge": ({}, {"name": "hinge"}),
    "exo_pair": ({"label_smoothing": 1e-3}, {"name": "exo"}),
    "nca_pair": ({}, {"name": "nca", "beta": 0.1}),
    "robust": ({"label_smoothing": 0.2}, {"name": "dpo", "smoothing": "robust", "label_smoothing": 0.2}),
    "bco_pair": ({}, {"name": "bco_pair"}),
    "sppo_hard": ({}, {"name": "sppo", "probabilities": "hard", "beta": 0.1}),
    "aot": ({"label_smoothing": 0.1}, {"name": "aot", "beta": 0.1, "label_smoothing": 0.1}),
    "aot_unpaired": ({}, {"name": "aot", "beta": 0.1, "paired": False}),
    "apo_zero": ({}, {"name": "apo"}),
    "apo_down": ({}, {"name": "apo", "variant": "down"}),
    "discopop": ({"discopop_tau": 0.2}, {"name": "discopop", "beta": 0.1, "tau": 0.2}),
    "sft": ({}, {"name": "sft"}),
    "ipo": ({}, {"name": "ipo"}),
    "sigmoid_norm": ({}, {"name": "sigmoid_norm", "beta": 0.1}),
}
TOLERANCE = {"exo_pair": 1e-7}  # TRL keeps epsilon in float32


@pytest.mark.parametrize("loss_type", SAME)
def test_loss_types(exact, loss_type):
    options, ours = SAME[loss_type]
    pairs = exact.pairs()
    expected = trl_dpo(pairs, [loss_type], **options)
    found = losses.build(ours)(pairs).loss.mean()
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE.get(loss_type, 1e-12))
    sides = [pairs.chosen.logps, pairs.rejected.logps]
    slopes = [torch.autograd.grad(x, sides, allow_unused=True, materialize_grads=True) for x in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE.get(loss_type, 1e-12))


def test_label_smoothing_is_ignored_by_trl(exact):
    """TRL's `sigmoid` drops label_smoothing; ours is conservative DPO."""
    pairs = exact.pairs()
    smoothed = losses.build("dpo", label_smoothing=0.2)(pairs).loss.mean()
    ignored = trl_dpo(pairs, label_smoothing=0.2)
    torch.testing.assert_close(ignored, losses.build("dpo")(pairs).loss.mean(), rtol=0, atol=1e-12)
    assert abs(smoothed - ignored) > 1e-3


@pytest.mark.parametrize("divergence", ["forward_kl", "js"])
def test_divergences(exact, divergence):
    pairs = exact.pairs()
    theirs = {"js": "js_divergence"}.get(divergence, divergence)
    found = losses.build("f_dpo", divergence=divergence)(pairs).loss.mean()
    torch.testing.assert_close(found, trl_dpo(pairs, f_divergence_type=theirs), rtol=0, atol=1e-12)


def test_alpha_divergence(exact):
    """TRL knows it in float32 and half precision only (float64: KeyError), and its coefficient is our alpha."""
    pairs = type(exact)(torch.float32).pairs()
    found = losses.build("f_dpo", divergence="alpha", alpha=0.3)(pairs).loss.mean()
    expected = trl_dpo(pairs, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    with pytest.raises(KeyError):
        trl_dpo(exact.pairs(), f_divergence_type="alpha_divergence")


def test_mixtures(exact):
    pairs = exact.pairs()
    expected = trl_dpo(pairs, ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])
    torch.testing.assert_close(losses.build("mpo")(pairs).loss.mean(), expected, rtol=0, atol=1e-12)
    expected = trl_dpo(pairs, ["sigmoid", "sft"], [1.0, 0.5])
    found = losses.build("rpo", alpha=0.5, nll_reduction="token")(pairs).loss.mean()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_length_desensitised(exact):
    pairs = exact.pairs()
    found = losses.build("ld_dpo", alpha=0.3)(pairs).loss.mean()
    torch.testing.assert_close(found, trl_dpo(pairs, ld_alpha=0.3), rtol=0, atol=1e-12)


def test_weighting_has_no_clamp(exact):
    pairs, _ = exact.distribution_pairs()
    found = losses.build("wpo", beta=0.1, clamp=False)(pairs).loss.mean()
    torch.testing.assert_close(found, trl_dpo(pairs, use_weighting=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("loss_type", "name"), [("kto", "kto"), ("apo_zero_unpaired", "apo_zero_unpaired")])
def test_kto(exact, loss_type, name):
    """One process: the mean of rank means is the mean. The losses come chosen first, and are averaged."""
    batch = exact.labelled()
    mask = batch.completions.mask
    completion_mask = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1).long()
    same = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
    zero = lambda s, field: torch.where(s.mask, getattr(s, field), 0.0)  # noqa: E731
    trainer = SimpleNamespace(
        model=Scores(torch.zeros(1, 1)),
        ref_model=Scores(zero(batch.completions, "ref_logps")),
        accelerator=same,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        calculate_KL=loss_type == "kto",
        loss_type=loss_type,
        beta=0.1,
        desirable_weight=1.2,
        undesirable_weight=0.7,
    )
    other, models = batch.mismatched, ("logps", "ref_logps")
    trainer._compute_kl_logps = lambda model, _: zero(other, models[model is trainer.ref_model]).sum(-1)
    inputs = dict.fromkeys(("completion_mask", "input_ids", "attention_mask"), completion_mask)
    inputs["label"] = batch.desirable
    expected = KTOTrainer._compute_loss(trainer, Scores(zero(batch.completions, "logps")), inputs, False)
    loss = losses.build(name, desirable_weight=1.2, undesirable_weight=0.7)
    torch.testing.assert_close(loss(batch).loss.mean(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "mean", "ours"),
    [
        (
            {"loss_type": "sigmoid", "label_smoothing": 0.1},
            False,
            {"name": "cpo", "alpha": 0.0, "label_smoothing": 0.1},
        ),
        ({"loss_type": "simpo", "simpo_gamma": 0.5}, True, {"name": "simpo", "beta": 0.1, "gamma": 0.5}),
        (
            {"loss_type": "simpo", "simpo_gamma": 0.5, "alpha": 0.3},
            True,
            {"name": "alphapo", "beta": 0.1, "gamma": 0.5, "alpha": 0.3},
        ),
    ],
    ids=["sigmoid", "simpo", "alphapo"],
)
def test_cpo(exact, options, mean, ours):
    pairs = exact.pairs()
    trainer = SimpleNamespace(
        loss_type="sigmoid", beta=0.1, alpha=0.0, label_smoothing=0.0, accelerator=SimpleNamespace(device="cpu")
    )
    vars(trainer).update(options)
    sides = [side.mean_logps if mean else side.sum_logps for side in (pairs.chosen, pairs.rejected)]
    expected, chosen, rejected = CPOTrainer.cpo_loss(trainer, *sides)
    out = losses.build(ours)(pairs)
    torch.testing.assert_close(out.loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.chosen_rewards, chosen, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.rejected_rewards, rejected, rtol=0, atol=1e-12)


def test_orpo(exact):
    """TRL casts to float32 and adds beta * log sigmoid with the sign turned outside; the odds term agrees to 1e-6."""
    pairs = exact.pairs()
    trainer = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    expected, *_ = ORPOTrainer.odds_ratio_loss(trainer, pairs.chosen.mean_logps, pairs.rejected.mean_logps)
    found = losses.build("orpo", nll_reduction="example")(pairs).loss + pairs.chosen.mean_logps
    torch.testing.assert_close(found, -expected.double(), rtol=0, atol=1e-6)
