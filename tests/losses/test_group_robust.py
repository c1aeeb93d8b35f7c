"""group_robust: golden weight trajectories, limits, and where the update stands relative to its use."""

import pytest
import torch

from alignlab import losses
from alignlab.losses import Facts, Labelled, _examples

PLAIN = {"gr_dpo": "dpo", "gr_ipo": "ipo", "gr_dpo_chi": "dpo", "is_dpo": "dpo"}


def build(name, hparams, facts):
    """Returns the bound loss of a golden case."""
    base = {"name": PLAIN[name], **{key: hparams[key] for key in ("beta", "normalise") if key in hparams}}
    options = {"step_size": hparams["step_size"], "mode": hparams["mode"], "chi": hparams.get("chi", 1.0)}
    options["group_size_correction"] = hparams.get("C", 0.0)
    if "init" in hparams:
        options |= {"weighting": "fixed", "initial_weights": dict(zip(facts.groups, hparams["init"], strict=True))}
    loss = losses.build("group_robust", base=base, **options)
    loss.bind(facts)
    return loss


@pytest.mark.parametrize("setting", [0, 1])
@pytest.mark.parametrize("name", PLAIN)
def test_golden(golden, facts, name, setting):
    """Each golden batch is one optimiser step: alpha moves first, then weights the losses of the step."""
    case, batch = golden.case(name, setting), golden.pairs()
    loss = build(name, case.hparams, facts)
    for rows, expected in zip(case.hparams["batches"], case.outputs["trajectory"], strict=True):
        step = _examples.take(batch, torch.tensor(rows))
        totals = loss.totals(step)
        objective = loss(step, totals).loss.mean()
        golden.close(objective, expected["loss"])
        loss.update(totals)
        golden.close(loss.log_weights.exp(), expected["alpha"])
        if "group_losses" in totals:
            golden.close(loss._scales(totals) * totals["group_losses"], expected["group_loss"])
    golden.close(objective, case.outputs["loss"])
    golden.close_gradients(objective, step, case.seq_grad)
    golden.close(loss.base(batch).loss, case.outputs["per_example"])


def test_importance_weights(facts):
    """Rows 60, 30, 10: weights proportional to 1/60, 1/30, 1/10 are 1/9, 2/9, 6/9."""
    loss = losses.build("group_robust", weighting="importance")
    loss.bind(facts)
    assert loss.weights.tolist() == pytest.approx([1 / 9, 2 / 9, 6 / 9])


def test_is_dpo_gives_each_group_the_same_say(facts):
    """What docs/reproductions.md calls IS: rows 60, 30, 10 weigh 100/180, 100/90, 100/30, so each group sums to 1/3."""
    with pytest.warns(UserWarning, match="stands for {name: group_robust, base: dpo, weighting: fixed}"):
        loss = losses.build("is_dpo")
    loss.bind(facts)
    rows = torch.tensor(list(facts.groups.values()), dtype=torch.float64)
    a_row = loss.weights * loss._scales({"group_counts": rows}) * rows.sum()
    assert a_row.tolist() == pytest.approx([100 / 180, 100 / 90, 100 / 30])


def test_one_group_is_the_base(exact):
    """K = 1: batch_mean gives the mean DPO loss, total gives it times the rows of the step."""
    batch = exact.pairs()
    batch.group = torch.zeros(6, dtype=torch.int64)
    expected = losses.build("dpo")(batch).loss.mean()
    for mode, factor in (("batch_mean", 1), ("total_mean", 1), ("total", 6)):
        loss = losses.build("group_robust", mode=mode)
        loss.bind(Facts(rows=50, groups={"all": 50}))
        torch.testing.assert_close(loss(batch).loss.mean(), factor * expected)


def test_weights_equal_to_shares_give_the_plain_mean(exact):
    """alpha_g = N_g / N cancels N / N_g: total_mean is the plain mean over rows."""
    batch = exact.pairs()  # groups 0, 1, 0, 2, 1, 0
    loss = losses.build(
        "group_robust", weighting="fixed", initial_weights={"a": 3 / 6, "b": 2 / 6, "c": 1 / 6}, mode="total_mean"
    )
    loss.bind(Facts(rows=6, groups={"a": 3, "b": 2, "c": 1}))
    torch.testing.assert_close(loss(batch).loss, losses.build("dpo")(batch).loss)


def test_without_steps_groups_are_balanced(exact, facts):
    loss = losses.build("group_robust", step_size=0.0, mode="batch_mean")
    loss.bind(facts)
    batch = exact.pairs()
    plain = losses.build("dpo")(batch).loss
    means = [plain[batch.group == g].mean() for g in range(3)]
    torch.testing.assert_close(loss(batch).loss.mean(), sum(means) / 3)


def test_large_steps_reach_the_worst_group(exact, facts):
    """step_size -> inf: all weight on the group with the highest mean loss, without overflow."""
    loss = losses.build("group_robust", step_size=1e9, mode="batch_mean")
    loss.bind(facts)
    batch = exact.pairs()
    plain = losses.build("dpo")(batch).loss
    worst = max(plain[batch.group == g].mean() for g in range(3))
    torch.testing.assert_close(loss(batch).loss.mean(), worst)


def test_closed_form_of_one_step(exact, facts):
    """alpha after one step is softmax(log alpha + step_size * (G + C / sqrt(N_g)))."""
    loss = losses.build("group_robust", step_size=0.7, mode="batch_mean", group_size_correction=2.0)
    loss.bind(facts)
    batch = exact.pairs()
    plain = losses.build("dpo")(batch).loss.detach()
    means = torch.stack([plain[batch.group == g].mean() for g in range(3)])
    loss.update(loss.totals(batch))
    rows = torch.tensor([60.0, 30.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(loss.weights, torch.softmax(0.7 * (means + 2.0 / rows.sqrt()), 0))


def test_summed_ipo_does_not_overflow(exact, facts):
    """The official alpha * exp(step_size * G) is inf for such losses; here alpha stays on the simplex."""
    loss = losses.build("group_robust", base={"name": "ipo", "beta": 0.001, "normalise": "sum"}, step_size=0.01)
    loss.bind(facts)
    for _ in range(3):
        loss.update(loss.totals(exact.pairs()))
    assert loss.weights.sum().item() == pytest.approx(1.0)
    assert loss(exact.pairs()).loss.isfinite().all()


def test_when_evaluation_needs_totals():
    """total_mean scales each row by alpha N / N_g alone; other modes need counts, and so do bases that need totals."""

    def needed(**options):
        return losses.build("group_robust", **options).needs.totals_in_evaluation

    assert not needed()
    assert needed(mode="batch_mean")
    assert needed(mode="total")
    assert needed(base="kto", weighting="importance")
    assert not needed(base="bco", weighting="importance")


def test_relabelled_groups(exact, facts):
    """Renaming groups permutes the weights and leaves the losses alone."""
    order = torch.tensor([2, 0, 1])  # new index of old group
    loss, other = (losses.build("group_robust", step_size=0.5) for _ in range(2))
    loss.bind(facts)
    other.bind(Facts(rows=100, groups={"b": 30, "c": 10, "a": 60}))
    batch, renamed = exact.pairs(), exact.pairs()
    renamed.group = order[batch.group]
    torch.testing.assert_close(loss(batch).loss, other(renamed).loss)
    loss.update(loss.totals(batch))
    other.update(other.totals(renamed))
    torch.testing.assert_close(other.weights[order], loss.weights)


def test_evaluation_uses_the_weights_as_they_are(exact, facts):
    loss = losses.build("group_robust", step_size=0.5, mode="batch_mean")
    loss.bind(facts)
    batch = exact.pairs()
    trained = loss(batch).loss.detach()
    loss.eval()
    still = losses.build("group_robust", step_size=0.0, mode="batch_mean")
    still.bind(facts)
    torch.testing.assert_close(loss(batch).loss, still(batch).loss)
    assert (loss(batch).loss - trained).abs().max() > 1e-3


def test_order_of_updates(exact, facts):
    """Over two micro-batches alpha moves once by the sum of both, or twice, from where the first left it."""
    batch = exact.pairs()
    parts = [_examples.take(batch, torch.arange(a, b)) for a, b in ((0, 3), (3, 6))]
    step, micro = (losses.build("group_robust", step_size=0.5, update_order=o) for o in ("step", "micro_batch"))
    assert (step.needs.coupled, micro.needs.coupled) == ("step", "micro_batch")
    for loss in (step, micro):
        loss.bind(facts)
    sums = [step.totals(part) for part in parts]
    step.update({name: sums[0][name] + sums[1][name] for name in sums[0]})
    weights = []
    for part in parts:
        micro(part)
        micro.update(micro.totals(part))
        weights.append(micro.weights)
    # total_mean divides by the rows at hand: 3 of a micro-batch, 6 of the step, so the two moves sum to twice the one
    shares = torch.tensor([100 / 60, 100 / 30, 100 / 10], dtype=torch.float64)
    first = torch.softmax(0.5 * shares * sums[0]["group_losses"] / 3, 0)
    torch.testing.assert_close(weights[0], first)
    torch.testing.assert_close(weights[1], torch.softmax(first.log() + 0.5 * shares * sums[1]["group_losses"] / 3, 0))
    whole = (sums[0]["group_losses"] + sums[1]["group_losses"]) / 6
    torch.testing.assert_close(step.weights, torch.softmax(0.5 * shares * whole, 0))


def test_labelled_base(exact):
    """KTO under importance weights: each row's loss is scaled by alpha_g N / N_g, its KL taken over the step."""
    batch = exact.labelled()
    batch.group = torch.arange(12) % 2
    loss = losses.build("group_robust", base="kto", weighting="importance")
    loss.bind(Facts(rows=40, groups={"x": 30, "y": 10}, desirable=20, undesirable=20))
    assert loss.needs.data == "labelled"
    assert loss.needs.totals_from == "mismatched"
    out, plain = loss(batch), losses.build("kto")(batch)
    factors = torch.tensor([0.25 * 40 / 30, 0.75 * 40 / 10], dtype=torch.float64)
    torch.testing.assert_close(out.loss, factors[batch.group] * plain.loss)
    assert out.metrics["kl"] == plain.metrics["kl"]
    assert isinstance(batch, Labelled)


def test_state_survives(exact, facts):
    loss = losses.build("group_robust", step_size=0.5)
    loss.bind(facts)
    loss.update(loss.totals(exact.pairs()))
    fresh = losses.build("group_robust", step_size=0.5)
    fresh.bind(facts)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh.log_weights, loss.log_weights)
    assert loss.state_dict().keys() == {"log_weights"}


def test_metrics(exact, facts):
    """Weights and entropy of uniform groups, and each group's mean loss."""
    loss = losses.build("group_robust", step_size=0.0)
    loss.bind(facts)
    batch = exact.pairs()
    out, plain = loss(batch), losses.build("dpo")(batch).loss
    assert out.metrics["group/a/weight"][0].item() == pytest.approx(1 / 3)
    assert out.metrics["group_weights/entropy"][0].item() == pytest.approx(torch.log(torch.tensor(3.0)).item())
    total, count = out.metrics["group/a/loss"]
    assert (total / count).item() == pytest.approx(plain[batch.group == 0].mean().item())


def test_refusals(exact, facts):
    with pytest.raises(ValueError, match=r"loss\.base: KTO needs sums over the whole optimiser step"):
        losses.build("group_robust", base="kto")
    with pytest.raises(ValueError, match="initial_weights: weighting 'importance'"):
        losses.build("group_robust", weighting="importance", initial_weights={"a": 1.0})
    loss = losses.build("group_robust", weighting="fixed", initial_weights={"a": 0.5, "x": 0.5})
    with pytest.raises(ValueError, match=r"name the groups \['a', 'x'\], the data \['a', 'b', 'c'\]"):
        loss.bind(facts)
    loss = losses.build("group_robust")
    with pytest.raises(ValueError, match="call bind"):
        loss(exact.pairs())
    with pytest.raises(ValueError, match="column 'group'"):
        loss.bind(Facts(rows=3))
    with pytest.raises(ValueError, match=r"have no rows: \['b'\]"):
        loss.bind(Facts(rows=3, groups={"a": 3, "b": 0}))
