"""All pairs of a list: the pairs one by one under several bases, ties and holes, rewards, metrics, and refusals."""

import math
from itertools import combinations

import pytest
import torch
from making_lists import lists_of_ratios, pair_of

from alignlab import losses
from alignlab.losses import Facts, _examples

BASES = [
    {"name": "dpo", "beta": 0.3},
    {"name": "ipo"},
    {"name": "nca", "beta": 0.5},
    {"name": "simpo"},
    {"name": "odpo"},
    {"name": "sppo", "beta": 0.5},
    {"name": "dpo_margin"},
    {"name": "orpo", "nll_reduction": "example"},
]


@pytest.mark.parametrize("base", BASES, ids=lambda base: base["name"])
def test_the_mean_of_the_pairs_one_by_one(base):
    """Lists of four, best last: six pairs of each."""
    ratios = 0.1 * torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lists = lists_of_ratios(ratios, [[0.1, 0.3, 0.4, 0.9]] * 5, [3, 1, 4, 2])
    each = [losses.build(base)(pair_of(lists, j, i)).loss for i, j in combinations(range(4), 2)]
    found = losses.build("over_pairs", base=base)(lists).loss
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-14, atol=0)
    summed = losses.build("over_pairs", base=base, reduction="sum")(lists).loss
    torch.testing.assert_close(summed, torch.stack(each).sum(0), rtol=1e-14, atol=0)


def test_ties_and_holes_are_left_out():
    """Scores 2, 1, 1 and a hole: the two pairs of the first; all tied: nothing, and no gradient."""
    ratios = torch.tensor([[0.3, 0.1, -0.2, 9.0], [0.3, 0.1, -0.2, 0.4]], dtype=torch.float64)
    lists = lists_of_ratios(ratios, [[2.0, 1.0, 1.0, math.nan], [1.0] * 4])
    out = losses.build("over_pairs", base={"name": "dpo", "beta": 1.0})(lists)
    expected = sum(math.log1p(math.exp(-gap)) for gap in (0.2, 0.5)) / 2
    assert out.loss.tolist() == pytest.approx([expected, 0.0], rel=1e-14)
    (slopes,) = torch.autograd.grad(out.loss.sum(), [lists.completions.logps])
    assert slopes[1].abs().max() == 0
    assert slopes[0, 3].abs().max() == 0


def test_each_completion_has_one_reward():
    """Of DPO it is beta times the log-ratio, in however many pairs the completion is."""
    ratios = torch.tensor([[0.3, 0.1, -0.2]], dtype=torch.float64)
    out = losses.build("over_pairs", base={"name": "dpo", "beta": 0.5})(lists_of_ratios(ratios, [[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(out.rewards, 0.5 * ratios)


def test_metrics_count_the_pairs_that_count():
    """rpo logs its likelihood term: of scores 2, 1, 1 two pairs have the first as chosen, -1 + 0.3 / 2 a token."""
    lists = lists_of_ratios(torch.tensor([[0.3, 0.1, -0.2]], dtype=torch.float64), [[2.0, 1.0, 1.0]])
    out = losses.build("over_pairs", base="rpo")(lists)
    total, count = out.metrics["nll_loss"]
    assert (total.item(), count.item()) == (pytest.approx(2 * (1 - 0.15)), 2.0)


def test_groups_come_to_the_base():
    """A base that reads the group sees that of the pair's list."""
    seen = {}

    def base(batch):
        seen.update(group=batch.group.tolist(), weight=batch.weight.tolist())
        return -batch.chosen.sum_logps

    lists = lists_of_ratios(torch.zeros(2, 3), [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    lists.group, lists.weight = torch.tensor([4, 7]), torch.tensor([1.0, 0.5])
    losses.build("over_pairs", base=losses.from_function(base))(lists)
    assert seen == {"group": [4] * 3 + [7] * 3, "weight": [1.0] * 3 + [0.0, 0.5, 0.5]}


def test_facts_come_to_the_base():
    with pytest.warns(UserWarning, match="spin is DPO unless"):
        losses.build("over_pairs", base="spin").bind(Facts(rows=3))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("kto", r"loss\.base: KTO reads labelled, and not the pairs that a list has"),
        ("plackett_luce", r"loss\.base: PlackettLuce reads lists, and not the pairs"),
        ("cpo", r"loss\.base: CPO couples the pairs of a whole optimiser step.*write nll_reduction: example"),
        ("aot", r"loss\.base: AOT couples the pairs of a whole micro-batch"),
        ({"name": "tpo", "nll_reduction": "sum"}, r"loss\.base: TPO reads a gold completion beside each pair, which a"),
        ("hypo", r"loss\.base: HyPO reads an answer drawn in the step beside each pair, which a list has not"),
        ({"name": "sft", "reduction": "sum"}, r"loss\.base: SFT reads the chosen completion alone"),
    ],
)
def test_other_bases_are_refused(base, message):
    with pytest.raises(ValueError, match=message):
        losses.build("over_pairs", base=base)


def test_scores_are_no_columns():
    """What a pair has as columns a list has as scores; other columns stay."""
    assert losses.build("over_pairs", base="odpo").needs.columns == ()
    needs = losses.build("over_pairs", base={"name": "modpo", "scorers": ["helpful"], "weights": [0.5, 0.2, 0.3]}).needs
    assert (needs.data, needs.scorers, needs.rewards, needs.ref_logps) == ("lists", ("helpful",), 1, True)


def test_every_uncoupled_loss_of_pairs_is_taken():
    """One that is refused says so; none fails on lists."""
    taken = []
    for name in losses.names():
        try:
            loss = losses.build("over_pairs", base=name)
        except ValueError:
            continue
        loss.base.bind = lambda facts: None
        assert loss(_examples.example_batch(loss.needs)).loss.shape == (8,)
        taken.append(name)
    assert len(taken) >= 20
    assert {"dpo", "ipo", "hinge", "simpo", "tdpo", "modpo", "odpo", "nca", "apo", "exo", "wpo"} <= set(taken)
