"""The front of what runs trade against each other."""

from alignlab.report.comparison import pareto


def test_pareto_front():
    """By hand: (1, 1) and (2, 3) and (4, 4) stay; (2, 2) has a better one at its cost, (3, 3) an equal one before."""
    assert pareto([3, 2, 1, 4, 2], [3, 2, 1, 4, 3]) == [2, 4, 3]
    assert pareto([1, 1], [5, 5]) == [0]
