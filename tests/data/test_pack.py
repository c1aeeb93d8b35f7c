"""Rows packed a chunk at once: the same columns and keys as from lists, one by one."""

import pyarrow as pa
import pytest

from alignlab.data import content_key
from alignlab.data.keys import KEY
from alignlab.data.pack import IDS, MASK, column, pack
from alignlab.data.tokenise import Completion, Encoded

ROWS = [
    Encoded([1, 2, 3], {"chosen": Completion([4], [True]), "rejected": Completion([5, 6], [False, True])}),
    Encoded([7], {"chosen": Completion([8, 2**31 - 1], [True, True]), "rejected": Completion([], [])}),
]


def test_keys_are_those_of_the_lists():
    for row, packed in zip(ROWS, pack(ROWS), strict=True):
        assert packed.prompt.tolist() == row.prompt
        for name, one in row.completions.items():
            assert packed.keys[name] == content_key(row.prompt, one.ids, one.mask)


def test_columns_are_those_of_the_lists():
    packed = pack(ROWS)
    for name in ("chosen", "rejected"):
        sides = [row.completions[name] for row in ROWS]
        ids = column([row.completions[name].ids for row in packed], IDS)
        mask = column([row.completions[name].mask for row in packed], MASK)
        assert ids.equals(pa.array([side.ids for side in sides], IDS))
        assert mask.equals(pa.array([side.mask for side in sides], MASK))
    keys = [row.keys["chosen"] for row in packed]
    assert column(keys, KEY).equals(pa.array(keys, KEY))


@pytest.mark.parametrize(("kind", "part"), [(IDS, "ids"), (MASK, "mask")])
def test_lists_of_lists(kind, part):
    lists = [[getattr(one, part) for one in row.completions.values()] for row in ROWS]
    packed = [[getattr(one, part) for one in row.completions.values()] for row in pack(ROWS)]
    assert column(packed, pa.list_(kind)).equals(pa.array(lists, pa.list_(kind)))


@pytest.mark.parametrize("kind", [IDS, MASK, KEY, pa.list_(IDS)])
def test_no_row(kind):
    assert pack([]) == []
    assert column([], kind).equals(pa.array([], kind))


def test_other_columns_are_left_to_arrow():
    assert column([[0.5], None], pa.list_(pa.float64())).to_pylist() == [[0.5], None]
