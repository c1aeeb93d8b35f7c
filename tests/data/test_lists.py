"""Rows of several answers: as lists, as the pairs that losses of pairs take of them, and what is wrong with them."""

import io

import numpy as np
import pytest
from rich.console import Console

from alignlab.data import (
    CachedScores,
    DataOptions,
    PreferenceCollator,
    Rows,
    check,
    hold_out,
    keys_of,
    lengths,
    list_lengths,
    peek,
    prepare,
    render,
    row_tokens,
)
from alignlab.data.formats import parse_row
from alignlab.data.schema import RowError

ROW = {"prompt": "p", "completions": ["a", "b", "c", "d"], "scores": [1, 3.5, -2, 3.5]}
LISTS = DataOptions(kind="lists")


def prepared(rows, tokenizer, **options):
    return prepare(rows, tokenizer, DataOptions(**options), progress=False)


def texts(tokenizer, ids):
    return [tokenizer.decode(one).removesuffix("<eos>") for one in ids]


def pairs(found, tokenizer):
    """Texts of chosen and rejected of every row."""
    sides = (texts(tokenizer, found.dataset[f"{side}_ids"]) for side in ("chosen", "rejected"))
    return list(zip(*sides, strict=True))


# ---- read as pairs -----------------------------------------------------------------------------------------------


def test_the_best_and_the_worst_are_taken_and_the_first_of_equal_ones():
    row = parse_row(ROW, DataOptions(lists_as="best_worst"))
    assert row.completions == {"chosen": [("b", True)], "rejected": [("c", True)]}
    assert row.columns == {"score_chosen": 3.5, "score_rejected": -2.0}


@pytest.mark.parametrize("name", ["rank", "ranks"])
def test_of_ranks_one_is_the_best_and_no_column_is_made(name):
    row = parse_row({**ROW, "scores": None, name: [2, 1, 3, 3]}, DataOptions())
    assert row.completions == {"chosen": [("b", True)], "rejected": [("c", True)]}
    assert row.columns == {}


def test_rewards_follow_their_answers():
    row = parse_row({**ROW, "rewards": [[0, 0], [1, 2], [3, 4], [5, 6]]}, DataOptions())
    assert (row.columns["rewards_chosen"], row.columns["rewards_rejected"]) == ([1.0, 2.0], [3.0, 4.0])


def test_every_way_to_pair_a_list(tokenizer):
    """b and d are the best, equally good: b comes first. Four answers with one tie make five ordered pairs."""
    every = [("b", "a"), ("b", "c"), ("d", "a"), ("d", "c"), ("a", "c")]
    assert pairs(prepared([ROW], tokenizer, lists_as="all"), tokenizer) == every
    found = prepared([ROW], tokenizer, lists_as="best_rest")
    assert pairs(found, tokenizer) == [("b", "a"), ("b", "c")]
    assert (found.dataset["score_chosen"][:], found.dataset["score_rejected"][:]) == ([3.5, 3.5], [1.0, -2.0])
    [(best, other)] = pairs(prepared([ROW], tokenizer, lists_as="best_random"), tokenizer)
    assert (best, other in "ac") == ("b", True)


def test_a_random_other_is_drawn_by_content_and_not_by_place(tokenizer):
    rows = [{"prompt": f"p{n}", "completions": ["a", "b", "c", "d"], "scores": [3, 2, 1, 0]} for n in range(60)]
    turned = [
        {"prompt": row["prompt"], "completions": row["completions"][::-1], "scores": row["scores"][::-1]}
        for row in rows
    ]
    drawn, again = (
        [other for _, other in pairs(prepared(some, tokenizer, lists_as="best_random"), tokenizer)]
        for some in (rows, turned)
    )
    assert drawn == again
    assert min(drawn.count(one) for one in "bcd") >= 10


def test_pairs_of_a_list_share_its_columns_and_its_place_and_count_as_one_row(tokenizer):
    row = {**ROW, "group": "g", "weight": 2, "rewards": [{"x": 0}, {"x": 1}, {"x": 2}, {"x": 3}]}
    found = prepared([row, {"prompt": "q", "chosen": "a", "rejected": "b", "group": "h"}], tokenizer, lists_as="all")
    assert found.dataset["group"][:] == ["g"] * 5 + ["h"]
    assert found.dataset["weight"][:] == [2.0] * 5 + [1.0]
    assert found.dataset["source"][:] == ["row 0"] * 5 + ["row 1"]
    assert (found.report.rows_read, found.report.rows_kept) == (2, 2)
    assert found.report.reward_names == ("x",)


def test_labelled_losses_get_each_pair_as_two_rows(tokenizer):
    rows = [ROW, {"prompt": "q", "completion": "z", "label": True}, {"prompt": "q", "chosen": "e", "rejected": "f"}]
    found = prepared(rows, tokenizer, kind="labelled", lists_as="best_rest").dataset
    assert texts(tokenizer, found["completion_ids"]) == ["b", "a", "b", "c", "z", "e", "f"]
    assert found["label"][:] == [True, False, True, False, True, True, False]
    assert found["pair"][:] == [0, 0, 1, 1, -1, 3, 3]


def test_a_list_that_a_mixture_takes_twice_is_twice_as_many_pairs(tokenizer, write):
    path = write([ROW, {"prompt": "q", "chosen": "e", "rejected": "f"}])
    source = {"path": str(path), "weight": 2}
    found = prepared(source, tokenizer, kind="labelled", lists_as="best_rest").dataset
    assert texts(tokenizer, found["completion_ids"]) == ["b", "a", "b", "c", "e", "f"] * 2
    assert found["pair"][:] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_gold_goes_with_every_pair_of_a_list(tokenizer):
    found = prepared([{**ROW, "gold": "g"}], tokenizer, gold=True, lists_as="best_rest")
    assert texts(tokenizer, found.dataset["gold_ids"]) == ["g", "g"]
    with pytest.raises(ValueError, match="gold is missing, and the loss needs it"):
        prepared([ROW], tokenizer, gold=True, lists_as="best_rest")


# ---- read as lists -----------------------------------------------------------------------------------------------


def test_a_list_is_one_row_with_the_keys_of_pairs(tokenizer):
    """Scores cached for the pairs of a list serve the list, and back."""
    rows = [{**ROW, "group": "g", "weight": 2}, {**ROW, "prompt": "q", "group": "h"}]
    found = prepared(rows, tokenizer, kind="lists").dataset
    assert [texts(tokenizer, one) for one in found["completions_ids"]] == [["a", "b", "c", "d"]] * 2
    assert found["completions_mask"][0] == [[True, True]] * 4
    assert found["scores"][:] == [[1.0, 3.5, -2.0, 3.5]] * 2
    assert (found["group"][:], found["weight"][:]) == (["g", "h"], [2.0, 1.0])
    as_pairs = prepared(rows, tokenizer, lists_as="all").dataset
    of_pairs = {key for side in ("chosen", "rejected") for key in keys_of(as_pairs, side).tolist()}
    assert set(keys_of(found, "completions").tolist()) == of_pairs
    without = found.remove_columns("completions_key")
    assert (keys_of(without, "completions") == keys_of(found, "completions")).all()


def test_ranks_become_scores_from_zero(tokenizer):
    row = {"prompt": "p", "completions": ["a", "b", "c"], "rank": [2, 1, 3.5]}
    assert prepared([row], tokenizer, kind="lists").dataset["scores"][:] == [[1.5, 2.5, 0.0]]


def test_a_pair_is_a_list_of_two_and_keeps_its_scores(tokenizer):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [pair, {**pair, "prompt": "q", "score_chosen": 4, "score_rejected": 3.5}]
    found = prepared(rows, tokenizer, kind="lists").dataset
    assert [texts(tokenizer, one) for one in found["completions_ids"]] == [["a", "b"]] * 2
    assert found["scores"][:] == [[1.0, 0.0], [4.0, 3.5]]


def test_rejected_as_a_list_is_several_answers_and_as_messages_one(tokenizer):
    turn = {"role": "assistant", "content": "b"}
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": ["b", "c"]},
        {"prompt": "p", "chosen": "a", "rejected": ["b"], "score_chosen": 2, "score_rejected": [-1]},
        {
            "prompt": [{"role": "user", "content": "p"}],
            "chosen": "a",
            "rejected": [turn, turn | {"role": "user"}, turn],
        },
        {"prompt": [{"role": "user", "content": "p"}], "chosen": "a", "rejected": [[turn], [turn | {"content": "c"}]]},
    ]
    found = prepared(rows, tokenizer, kind="lists").dataset
    assert found["scores"][:] == [[1.0, 0.0, 0.0], [2.0, -1.0], [1.0, 0.0], [1.0, 0.0, 0.0]]
    assert pairs(prepared(rows[:1], tokenizer, lists_as="best_rest"), tokenizer) == [("a", "b"), ("a", "c")]
    assert pairs(prepared(rows[:1], tokenizer), tokenizer) == [("a", "b")]


def test_rewards_of_a_list_are_in_one_order(tokenizer):
    row = {**ROW, "rewards": [{"y": 1, "x": 0}, {"x": 2, "y": 3}, {"x": 4, "y": 5}, {"x": 6, "y": 7}]}
    found = prepared([row], tokenizer, kind="lists", rewards=2)
    assert found.dataset["rewards"][:] == [[[0, 1], [2, 3], [4, 5], [6, 7]]]
    with pytest.raises(ValueError, match="rewards has 2 rewards, the loss needs 3"):
        prepared([row], tokenizer, kind="lists", rewards=3)


def test_equal_answers_are_one_with_the_mean_of_their_scores(tokenizer):
    """Of a, b, a, c with 5, 1, 2, 3 the a is worth 3.5; "ab" and "ac" are equal once they are cut to one token."""
    row = {"prompt": "p", "completions": ["a", "b", "a", "c"], "scores": [5, 1, 2, 3]}
    found = prepared([row], tokenizer, kind="lists")
    assert found.dataset["scores"][:] == [[3.5, 1.0, 3.0]]
    assert (found.report.completions_repeated, found.report.completions_left_out) == (1, 0)
    assert found.report.notes == [
        "1 completions equal another of their list: equal ones are one, with the mean of their scores"
    ]
    row = {"prompt": "p", "completions": ["ab", "b", "ac", "c"], "scores": [5, 1, 2, 3]}
    found = prepared([row], tokenizer, kind="lists", max_length=2)
    assert texts(tokenizer, found.dataset["completions_ids"][0]) == ["a", "b", "c"]
    assert found.dataset["scores"][:] == [[3.5, 1.0, 3.0]]
    assert found.report.completions_repeated == 1
    as_pairs = prepared([row], tokenizer, max_length=2, lists_as="all")
    assert pairs(as_pairs, tokenizer) == [("a", "b"), ("a", "c"), ("c", "b")]
    assert as_pairs.dataset["score_chosen"][:] == [3.5, 3.5, 3.0]


def test_most_completions_are_best_worst_and_others_by_content(tokenizer):
    rows = [{"prompt": f"p{n}", "completions": list("abcdef"), "scores": [0, 1, 5, 3, -1, 4]} for n in range(40)]
    found = prepared(rows, tokenizer, kind="lists", max_completions=3)
    taken = ["".join(texts(tokenizer, one)) for one in found.dataset["completions_ids"]]
    assert {len(one) for one in taken} == {3}
    assert all({"c", "e"} < set(one) for one in taken)
    assert {one for many in taken for one in many} == set("abcdef")
    assert found.report.completions_left_out == 120
    assert found.report.notes == ["120 completions of lists are not used (max_completions: 3)"]
    two = prepared(rows[:1], tokenizer, kind="lists", max_completions=2)
    assert texts(tokenizer, two.dataset["completions_ids"][0]) == ["c", "e"]
    note = "4 completions of lists are not used (lists_as: best_worst)"
    assert prepared(rows[:1], tokenizer).report.notes == [note]


def test_most_completions_are_the_same_in_any_order_of_the_row(tokenizer):
    """Two answers tie as the best and two as the worst: content chooses between them, and not the file."""
    answers = list(zip("abcdef", [5, 5, 3, 2, 1, 1], strict=True))
    taken = set()
    for turn in range(6):
        texts_, scores = zip(*answers[turn:], *answers[:turn], strict=True)
        row = {"prompt": "p", "completions": list(texts_), "scores": list(scores)}
        found = prepared([row], tokenizer, kind="lists", max_completions=3)
        taken.add("".join(sorted(texts(tokenizer, found.dataset["completions_ids"][0]))))
    assert len(taken) == 1
    assert taken.pop()[0] in "ab"


def test_scores_that_float32_does_not_tell_apart_are_tied_and_counted(tokenizer):
    """2^24 and 2^24 + 1 are one number there, as are 0.3 and 0.1 + 0.2; losses of pairs compare them as they are."""
    rows = [
        {"prompt": "p", "completions": ["a", "b", "c"], "scores": [2**24, 2**24 + 1, 2]},
        {"prompt": "q", "completions": ["a", "b", "c"], "scores": [0.1 + 0.2, 0.3, 0.5]},
    ]
    found = prepared(rows, tokenizer, kind="lists")
    assert found.dataset["scores"][:] == [[2.0**24 + 1, 2.0**24 + 1, 2.0], [0.1 + 0.2, 0.1 + 0.2, 0.5]]
    assert found.report.completions_tied == 2
    note = "2 completions have scores that float32 does not tell from another's of their list: they are tied"
    assert found.report.notes == [note]
    as_pairs = prepared(rows[:1], tokenizer)
    assert pairs(as_pairs, tokenizer) == [("b", "c")]
    assert as_pairs.report.completions_tied == 0


def test_means_of_equal_answers_are_tied_as_float32_ties_them(tokenizer):
    """The mean of 1 and 3 and a score just above 2: once "ab" and "ac" are cut to one token nothing is better."""
    row = {"prompt": "p", "completions": ["ab", "ac", "b"], "scores": [1, 3, 2 + 1e-9]}
    with pytest.raises(ValueError, match="all 2 completions are equally good in float32"):
        prepared([row], tokenizer, kind="lists", max_length=2)
    row = {"prompt": "p", "completions": ["ab", "ac", "b", "c"], "scores": [1, 3, 2 + 1e-9, 0]}
    found = prepared([row], tokenizer, kind="lists", max_length=2)
    assert found.dataset["scores"][:] == [[2 + 1e-9, 2 + 1e-9, 0.0]]
    assert (found.report.completions_repeated, found.report.completions_tied) == (1, 1)


@pytest.mark.parametrize(
    ("field", "said"),
    [("completions", "completions, scores"), ("rank", "rank"), ("ranks", "ranks")],
)
@pytest.mark.parametrize("rejected", ["f", ["f", "g"]])
@pytest.mark.parametrize("kind", ["lists", "pairs"])
def test_a_list_beside_chosen_is_said_not_to_be_read(kind, rejected, field, said, tokenizer):
    row = {"prompt": "p", "chosen": "e", "rejected": rejected, field: ["a", "b"]}
    row |= {"scores": [1, 2]} if field == "completions" else {}
    found = prepared([row, {"prompt": "q", "chosen": "e", "rejected": "f", field: None}], tokenizer, kind=kind)
    assert f"fields that nothing reads: {said}" in found.report.notes


# ---- what is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"completions": "a"}, "completions must be a list of two answers or more"),
        ({"completions": ["a"]}, "completions must be a list of two answers or more"),
        ({"completions": ["a", "b", " ", "d"]}, r"completions\[2\] is empty"),
        ({"completions": ["a", "b", 3, "d"]}, r"completions\[2\] is of type int; allowed are text and a list"),
        ({"scores": None}, r"scores \(or rank\) is missing beside completions"),
        ({"scores": [1, 2, 3, float("nan")]}, "scores must be a list of finite numbers"),
        ({"scores": [1, 2, 3, True]}, "scores must be a list of finite numbers"),
        ({"scores": [10**400, 2, 3, 4]}, "scores must be a list of finite numbers"),
        ({"scores": None, "rank": [10**400, 2, 3, 4]}, "rank must be a list of finite numbers"),
        ({"scores": [1, 2, 3]}, "completions has 4 answers and scores 3 numbers"),
        ({"scores": [2, 2, 2, 2]}, "all 4 completions are equally good"),
        ({"completions": ["a"] * 4}, "all 4 completions are equal"),
        ({"completions": list("abba"), "scores": [0, 1, 1, 2]}, "all 2 completions are equally good"),
        ({"rewards": [[1]]}, "rewards must be a list with an entry for each of the 4 completions"),
        ({"chosen": "e", "rejected": ["f"], "score_chosen": 1, "score_rejected": [2]}, "chosen is not better"),
        ({"chosen": "e", "rejected": ["f"], "score_chosen": 1, "score_rejected": [1, 2]}, "rejected has 1 answers"),
        ({"rejected": ["f"]}, "chosen is missing"),
    ],
)
@pytest.mark.parametrize("kind", ["lists", "pairs"])
def test_lists_that_cannot_be_learned_from_say_why(kind, change, reason):
    with pytest.raises(RowError, match=reason):
        parse_row(ROW | change, DataOptions(kind=kind, lists_as="all"))


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (
            [2**24, 2**24 + 1],
            r"all 2 completions are equally good in float32.*found 16777216.0 to 16777217.0; take off",
        ),
        ([0, 1e-60], "equally good in float32"),
        ([1e39, 2e39], "a score is 2e.39; losses are given float32, which ends at 3.4e.38"),
        ([0, -1e39], "a score is -1e.39"),
    ],
)
def test_lists_that_float32_cannot_order_are_bad_rows(scores, reason):
    """They would have the loss 0, or NaN, and no NDCG."""
    rows = [{"prompt": "p", "completions": ["a", "b"], "scores": scores}]
    rows.append(
        {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": max(scores), "score_rejected": min(scores)}
    )
    for row in rows:
        with pytest.raises(RowError, match=reason):
            parse_row(row, LISTS)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "a"}, "rejected is missing"),
        ({"chosen": "a", "rejected": "a"}, "all 2 completions are equal"),
        ({"chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1}, "chosen is not better"),
        ({"chosen": "a", "rejected": "b", "score_chosen": "x", "score_rejected": 1}, "score_chosen is 'x' of type str"),
        ({"completion": "a", "label": True}, "given to a loss that needs lists"),
    ],
)
def test_pairs_that_are_no_list_say_why(row, reason):
    with pytest.raises(RowError, match=reason):
        parse_row({"prompt": "p", **row}, LISTS)


def test_answers_that_truncation_makes_equal_are_a_bad_row_where_nothing_is_left(tokenizer):
    rows = [
        {"prompt": "p", "completions": ["ab", "ac", "ad"], "scores": [1, 2, 3]},
        {"prompt": "p", "completions": ["ab", "ac", "b"], "scores": [1, 3, 2]},
    ]
    with pytest.raises(ValueError, match="row 0: all 3 completions have equal tokens after truncation") as error:
        prepared(rows, tokenizer, kind="lists", max_length=2)
    equally = "row 1: all 2 completions are equally good once those of equal tokens after truncation are one"
    assert equally in str(error.value)


def test_options_allow_what_is_there():
    with pytest.raises(ValueError, match="lists_as must be one of best_worst, best_rest, best_random, all; found 'x'"):
        DataOptions(lists_as="x")
    with pytest.raises(ValueError, match=r"max_completions must be at least 2 \(best and worst\), found 1"):
        DataOptions(max_completions=1)
    with pytest.raises(ValueError, match="a gold completion exists for kind='pairs' only, found kind='lists'"):
        DataOptions(kind="lists", gold=True)


# ---- what else looks at rows ---------------------------------------------------------------------------------------


def some_lists():
    """Lists of 2, 3 and 4, prompts of 1, 2 and 3 tokens, completions of n + 1 to n + k with the end token."""
    sizes = [2, 3, 4]
    return [
        {"prompt": "p" * n, "completions": ["c" * (n + k) for k in range(size)], "scores": list(range(size))}
        for n, size in enumerate(sizes, 1)
    ]


def test_lengths_of_lists_count_the_prompt_once(tokenizer):
    """1 + 2 + 3, 2 + 3 + 4 + 5 and 3 + 4 + 5 + 6 + 7 tokens."""
    found = prepared(some_lists(), tokenizer, kind="lists").dataset
    assert row_tokens(found, ["completions"]).tolist() == [6, 14, 25]
    assert row_tokens(found.select([2, 0]), ["completions"]).tolist() == [25, 6]
    assert lengths(found, "completions").dtype == np.int64


def test_lists_are_held_out_whole(tokenizer):
    rows = [{**row, "prompt": f"{row['prompt']}{n % 5}"} for n in range(10) for row in some_lists()[:1]]
    kept, held = hold_out(prepared(rows, tokenizer, kind="lists").dataset, 2)
    prompts = [set(map(tuple, one["prompt_ids"])) for one in (kept, held)]
    assert prompts[0].isdisjoint(prompts[1])
    assert (len(kept), len(held)) == (8, 2)


def test_check_counts_lists_and_the_length_of_what_is_better():
    """The better of any two is the longer one; 1 + 3 + 6 pairs."""
    found = check(some_lists(), progress=False)
    assert (found.kind, found.list_sizes) == ("lists", {2: 1, 3: 1, 4: 1})
    assert found.lengths["completion"].quantiles == (1, 1, 3, 6, 6)
    assert found.lengths["prompt + longest completion"].quantiles == (3, 3, 6, 9, 9)
    assert (found.bias.longer, found.bias.shorter, found.tokens_per_row) == (1.0, 0.0, (4 + 11 + 21) / 3)
    file = io.StringIO()
    Console(file=file, width=200).print(render(found))
    assert "Rows (lists)" in file.getvalue()
    assert "the better of two completions of a list is longer than the worse in 100.0%" in file.getvalue()
    assert "lists of 3" in file.getvalue()


def test_show_prints_the_best_first(tokenizer):
    [shown] = peek([ROW], 1, tokenizer).renderables
    headings = [line for line in shown.plain.splitlines() if line.startswith("completion of score")]
    assert headings == [f"completion of score {one} (2, of which 2 count)" for one in ("3.5", "3.5", "1", "-2")]


# ---- batches -------------------------------------------------------------------------------------------------------


def test_a_batch_of_lists_has_holes_where_lists_are_shorter(tokenizer):
    """Lists of 2, 3 and 4: four fields, of which the first row lacks two and the second one."""
    rows = Rows(prepared(some_lists(), tokenizer, kind="lists").dataset.with_format("numpy"))
    batch = PreferenceCollator(("completions",), 0, mode="flat")([rows[0], rows[1], rows[2]])
    layout = batch["completions"]
    assert layout["fields"] == [f"completions[{k}]" for k in range(4)]
    assert layout["mask"].any(-1).T.tolist() == [[True] * 2 + [False] * 2, [True] * 3 + [False], [True] * 4]
    assert [tree[2:] for tree in layout["trees"]] == [[1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6, 7]]
    assert layout["input_ids"].shape == (1, 6 + 14 + 25)
    scores = batch["columns"]["scores"]
    assert scores.nan_to_num(-1).tolist() == [[0, 1, -1, -1], [0, 1, 2, -1], [0, 1, 2, 3]]
    padded = PreferenceCollator(("completions",), 0)([rows[0], rows[1], rows[2]])["completions"]
    assert padded["input_ids"].shape == (9, 3 + 7)
    assert padded["mask"].equal(layout["mask"])


def test_cached_scores_and_hidden_states_go_where_their_completions_are(tokenizer):
    """What is read of a completion is its key's first byte; holes keep zeros."""
    data = prepared(some_lists(), tokenizer, kind="lists").dataset
    rows = Rows(data.with_format("numpy"))

    class Store:
        def __init__(self, width):
            self.width = width

        def get(self, keys):
            by_key = {bytes(one): n for n, one in zip(list_lengths(data), keys_of(data, "completions"), strict=True)}
            return [np.full((by_key[key], *self.width), float(key[0]), np.float32) for key in keys]

    collator = PreferenceCollator(("completions",), 0, cached=CachedScores({"reference": Store(())}, Store((2,))))
    batch = collator([rows[1], rows[0]])
    mask, found = batch["completions"]["mask"], batch["scores"]["reference"]
    first = [list(row["completions_key"][::16]) for row in (data[1], data[0])]
    assert [[found[k, n, 0].item() for k in range(3)] for n in range(2)] == [first[0], [*first[1], 0]]
    assert (found[~mask] == 0).all()
    assert batch["reference_hidden"][:, 0].equal(found.flatten()[batch["completions"]["slot"]])


def test_rewards_of_lists_are_laid_out_by_completion(tokenizer):
    lists = [{**row, "rewards": [[k, -k] for k in range(len(row["completions"]))]} for row in some_lists()[:2]]
    rows = Rows(prepared(lists, tokenizer, kind="lists", rewards=2).dataset.with_format("numpy"))
    batch = PreferenceCollator(("completions",), 0, rewards=True)([rows[0], rows[1]])
    found = batch["columns"]["rewards"].nan_to_num(9)
    assert found.tolist() == [[[0, 0], [0, 0]], [[1, -1], [1, -1]], [[9, 9], [2, -2]]]
