"""Keys of content: as columns of a prepared set, or computed for a set that has none."""

import hashlib

import numpy as np

from alignlab.data import DataOptions, content_key, hold_out, keys_of, prepare, value_counts

ROWS = [{"prompt": f"ask {i // 2}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]


def hexadecimal(keys):
    return [keys[i : i + 1].tobytes().hex() for i in range(len(keys))]


def test_columns_hold_what_is_computed_of_their_tokens(tokenizer):
    options = DataOptions(kind="labelled", mismatched=True)
    dataset = prepare(ROWS, tokenizer, options, progress=False).dataset
    bare = dataset.remove_columns([name for name in dataset.column_names if name.endswith("_key")])
    for field in ("prompt", "completion", "mismatched"):
        assert hexadecimal(keys_of(dataset, field)) == hexadecimal(keys_of(bare, field))
    row = dataset[3]
    expected = content_key(row["prompt_ids"], row["mismatched_ids"], row["mismatched_mask"])
    assert keys_of(dataset, "mismatched")[3:4].tobytes() == expected
    prompt = np.array(row["prompt_ids"], "<i8").tobytes()
    assert keys_of(dataset, "prompt")[3:4].tobytes() == hashlib.blake2b(prompt, digest_size=16).digest()


def test_keys_follow_rows_that_are_selected(tokenizer):
    dataset = prepare(ROWS, tokenizer, progress=False).dataset
    some = dataset.select([7, 3, 3, 30])
    assert hexadecimal(keys_of(some, "chosen")) == [hexadecimal(keys_of(dataset, "chosen"))[i] for i in (7, 3, 3, 30)]


def test_rows_are_held_out_by_the_hash_of_their_prompt(tokenizer):
    """The three prompts of the smallest hashes, with both rows of each; the columns of keys change nothing."""
    dataset = prepare(ROWS, tokenizer, progress=False).dataset
    hashes = [hashlib.blake2b(np.array(ids, "<i8").tobytes(), digest_size=16).digest() for ids in dataset["prompt_ids"]]
    smallest = sorted(set(hashes))[:3]
    expected = [i for i, one in enumerate(hashes) if one in smallest]
    assert len(expected) == 6
    for one in (dataset, dataset.remove_columns(["prompt_key"])):
        train, held = hold_out(one, 5)
        assert held["source"][:] == [f"row {i}" for i in expected]
        assert len(train) == 34


def test_values_of_a_column_are_counted_over_the_rows_that_are_left(tokenizer):
    rows = [{**row, "group": "ab"[number % 3 == 0]} for number, row in enumerate(ROWS)]
    dataset = prepare(rows, tokenizer, DataOptions(kind="labelled"), progress=False).dataset
    assert value_counts(dataset, "group") == {"a": 2 * 26, "b": 2 * 14}
    assert value_counts(dataset.select([0, 2, 3]), "label") == {True: 2, False: 1}
