"""The order of rows: steps by seed and epoch alone, dealt evenly in rows and in tokens, sorted only when asked."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.data.sampler import StepCut, StepSampler, deal

TOKENS = np.random.default_rng(0).lognormal(4, 0.6, 203).astype(int) + 2


def steps_of(sampler):
    return [step.tolist() for step in sampler.steps()]


def dealt(world, per_device, accumulation, **options):
    """Returns step -> rows over all ranks and micro-batches, and the tokens of each micro-batch."""
    cut = StepCut(per_device, accumulation, world)
    ranks = [list(StepSampler(203, cut, rank=rank, **options)) for rank in range(world)]
    assert len({len(one) for one in ranks}) == 1
    return [
        [share for rank in ranks for share in rank[start : start + accumulation]]
        for start in range(0, len(ranks[0]), accumulation)
    ]


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("cut", [(1, 8, 1), (1, 2, 4), (2, 4, 1), (2, 2, 2), (4, 1, 2)])
def test_which_rows_meet_does_not_depend_on_the_cut(cut, window):
    expected = steps_of(StepSampler(203, StepCut(8), seed=3, tokens=TOKENS, length_window=window))
    steps = dealt(*cut, seed=3, tokens=TOKENS, length_window=window)
    found = [sorted(row for share in step for row in share if row >= 0) for step in steps]
    assert found == [sorted(step) for step in expected]
    assert sorted(chain(*found)) == list(range(203))


def test_the_window_sorts_within_its_steps_only():
    """Windows hold the same rows as without sorting; within one, the steps' lengths do not overlap."""
    plain = steps_of(StepSampler(203, StepCut(8), seed=1))
    windowed = steps_of(StepSampler(203, StepCut(8), seed=1, tokens=TOKENS, length_window=4))
    assert plain != windowed
    assert plain[-1] == windowed[-1]  # the last, smaller step stays as it is
    for start in range(0, 25, 4):
        before, after = plain[start : min(start + 4, 25)], windowed[start : min(start + 4, 25)]
        assert sorted(chain(*before)) == sorted(chain(*after))
        ranges = sorted((min(TOKENS[step]), max(TOKENS[step])) for step in after)
        assert all(one[1] <= other[0] for one, other in pairwise(ranges))


def test_windows_come_anew_each_epoch_and_again_from_the_same_seed():
    sampler = StepSampler(203, StepCut(8), seed=1, tokens=TOKENS, length_window=4)
    first, again = steps_of(sampler), steps_of(sampler)
    sampler.set_epoch(1)
    assert first == again != steps_of(sampler)


def test_a_window_of_sorted_steps_pads_less():
    """Padding of 8 rows to the longest, over the whole epoch: 0.50 at random, 0.21 over 4 steps, 0.05 over 25."""

    def waste(window):
        steps = steps_of(StepSampler(200, StepCut(8), seed=0, tokens=TOKENS[:200], length_window=window))
        return 1 - TOKENS[:200].sum() / sum(8 * TOKENS[step].max() for step in steps)

    assert [round(waste(window), 2) for window in (0, 4, 25)] == [0.50, 0.21, 0.05]


def test_deal_by_hand():
    """Longest first to the emptiest share that has room: 9 | 8, 7 to the 8, 4 and 3 to the 9: 16 | 16."""
    tokens = np.array([3, 9, 1, 8, 4, 7])
    assert deal(np.arange(6), 2, tokens) == [[1, 4, 0], [3, 5, 2]]
    assert deal(np.arange(6), 2) == [[0, 1, 2], [3, 4, 5]]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=64), st.integers(1, 9))
def test_deal_is_even_in_rows_and_no_row_is_lost(lengths, shares):
    step = np.arange(len(lengths))
    found = deal(step, shares, np.array(lengths))
    assert sorted(row for share in found for row in share) == step.tolist()
    assert [len(share) for share in found] == [len(part) for part in np.array_split(step, shares)]


def test_shares_are_balanced_in_tokens():
    """Over an epoch of steps of 16 rows on 4 ranks, the fullest rank exceeds the mean by 3 %, instead of 29 %."""

    def excess(**options):
        steps = dealt(4, 4, 1, seed=0, **options)[:-1]
        sums = np.array([[TOKENS[share].sum() for share in step] for step in steps])
        return (sums.max(1).sum() / sums.mean(1).sum()) - 1

    assert round(excess(), 2) == 0.29
    assert round(excess(tokens=TOKENS), 2) == 0.03
