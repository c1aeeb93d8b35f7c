"""KTO's mismatched completion depends on content alone, never on the order of files or batches."""

import random

import pytest

from alignlab.data import DataOptions, content_key, prepare
from alignlab.data.mismatch import partners


def rows(number):
    return [
        {"prompt": f"ask {i % (number // 2)}", "completion": f"answer {i}", "label": i % 2 == 0} for i in range(number)
    ]


def mismatched(tokenizer, source, **options):
    """(prompt, completion) -> the completion it is given."""
    options = DataOptions(kind="labelled", mismatched=True, **options)
    dataset = prepare(source, tokenizer, options, progress=False).dataset
    return {
        (tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row["completion_ids"])): (
            tokenizer.decode(row["mismatched_ids"]),
            row["mismatched_mask"],
        )
        for row in dataset
    }


def test_partners_by_hand():
    """In the order of keys: a(1) b(1) c(2) d(1), cyclic. a and b pass over prompt 1 to c; d wraps past a and b."""
    prompts, keys = [b"2", b"1", b"1", b"1"], [b"c", b"a", b"d", b"b"]
    assert partners(prompts, keys).tolist() == [2, 0, 0, 0]


def test_partners_against_a_plain_search():
    chance = random.Random(0)
    for _ in range(50):
        number = chance.randint(2, 12)
        prompts = [bytes([chance.randint(0, 2)]) for _ in range(number)]
        if len(set(prompts)) == 1:
            continue
        keys = [prompt + bytes([chance.randint(0, 255), row]) for row, prompt in enumerate(prompts)]
        chance.shuffle(order := sorted(range(number), key=keys.__getitem__))
        order.sort(key=keys.__getitem__)
        for row, partner in enumerate(partners(prompts, keys)):
            start = order.index(row)
            lap = [order[(start + step) % number] for step in range(1, number)]
            assert partner == next(other for other in lap if prompts[other] != prompts[row])


def test_every_row_gets_the_completion_of_the_next_other_prompt_whole(tokenizer):
    found = mismatched(tokenizer, rows(20))
    own = {completion: prompt for prompt, completion in found}
    for (prompt, _), (completion, mask) in found.items():
        assert own[completion] != prompt
        assert mask == [True] * len(mask)
        assert len(mask) == len(tokenizer(completion)["input_ids"])
    order = sorted(
        found,
        key=lambda item: content_key(
            *(tokenizer(text)["input_ids"] for text in item), [True] * len(tokenizer(item[1])["input_ids"])
        ),
    )
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        if here[0] != there[0]:
            assert found[here][0] == there[1]


def test_order_of_rows_changes_nothing(tokenizer):
    source = rows(20)
    shuffled = random.Random(1).sample(source, len(source))
    assert mismatched(tokenizer, source) == mismatched(tokenizer, shuffled)


def test_new_rows_change_only_their_neighbours(tokenizer):
    """Each of n new rows stands between two old ones: at most the old rows just before it, of one prompt, change."""
    before, after = mismatched(tokenizer, rows(40)), None
    new = [{"prompt": f"new {i}", "completion": f"new answer {i}", "label": True} for i in range(4)]
    after = mismatched(tokenizer, rows(40) + new)
    changed = [key for key in before if after[key] != before[key]]
    assert 1 <= len(changed) <= 8  # prompts have two rows each
    assert all(after[key][0].startswith("new answer") for key in changed)


@pytest.mark.parametrize(("mode", "expected"), [("keep_start", "lon"), ("keep_end", "er<eos>")])
def test_a_mismatched_completion_is_cut_under_its_new_prompt(tokenizer, mode, expected):
    """13 tokens: "long prompt" (11) leaves room for its own "a<eos>"; the other's "longer<eos>" is cut to 2 or 3."""
    source = [
        {"prompt": "long prompt", "completion": "a" if mode == "keep_start" else "ab", "label": True},
        {"prompt": "p", "completion": "longer", "label": False},
    ]
    limit = 14
    found = mismatched(tokenizer, source, max_length=limit, truncation_mode=mode)
    text, mask = found["long prompt", source[0]["completion"] + "<eos>"]
    assert (text, mask) == (expected, [True] * 3)
    assert found["p", "longer<eos>"][0] == source[0]["completion"] + "<eos>"


def test_pairs_are_split_first(tokenizer):
    source = [{"prompt": f"ask {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
    found = mismatched(tokenizer, source)
    assert len(found) == 6
    assert all(prompt[-1] != text.removesuffix("<eos>")[-1] for (prompt, _), (text, _) in found.items())


def test_one_prompt_alone_is_an_error(tokenizer):
    source = [{"prompt": "ask", "completion": text, "label": True} for text in "abc"]
    with pytest.raises(ValueError, match="need at least two distinct prompts; the 3 rows have 1"):
        mismatched(tokenizer, source)
