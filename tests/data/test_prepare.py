"""Whole sets of rows: the columns that come out, and an account of every row that goes in."""

import json
from contextlib import suppress

import datasets
import pytest

from alignlab.data import DataOptions, prepare

PAIR = {"prompt": "ask", "chosen": "good", "rejected": "bad"}


def pairs(number, **more):
    return [{"prompt": f"ask {i}", "chosen": f"good {i}", "rejected": f"bad {i}", **more} for i in range(number)]


def run(source, tokenizer, seed=0, **options):
    return prepare(source, tokenizer, DataOptions(**options), seed=seed, progress=False)


def test_columns_and_types_of_pairs(tokenizer, write):
    path = write([{**PAIR, "gold": "best", "group": "g", "weight": 2, "rewards_chosen": [1], "rewards_rejected": [0]}])
    dataset = run(path, tokenizer, gold=True).dataset
    ids, mask = datasets.List(datasets.Value("int32")), datasets.List(datasets.Value("bool"))
    key = datasets.Value("fixed_size_binary[16]")
    assert dict(dataset.features) == {
        "prompt_ids": ids,
        "prompt_key": key,
        "chosen_ids": ids,
        "chosen_mask": mask,
        "chosen_key": key,
        "rejected_ids": ids,
        "rejected_mask": mask,
        "rejected_key": key,
        "gold_ids": ids,
        "gold_mask": mask,
        "gold_key": key,
        "source": datasets.Value("string"),
        "group": datasets.Value("string"),
        "weight": datasets.Value("float64"),
        "rewards_chosen": datasets.List(datasets.Value("float64")),
        "rewards_rejected": datasets.List(datasets.Value("float64")),
    }
    row = dataset[0]
    assert {name: tokenizer.decode(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected", "gold")} == {
        "prompt": "ask",
        "chosen": "good<eos>",
        "rejected": "bad<eos>",
        "gold": "best<eos>",
    }
    assert (row["source"], row["weight"], row["rewards_chosen"]) == (f"{path}:1", 2.0, [1.0])


def test_pairs_are_split_for_labelled_losses_beside_born_labelled_rows(tokenizer):
    rows = [
        {"prompt": "p", "completion": "x", "label": False, "rewards": [5]},
        {**PAIR, "rewards_chosen": [1], "rewards_rejected": [0]},
    ]
    dataset = run(rows, tokenizer, kind="labelled").dataset
    assert [tokenizer.decode(ids) for ids in dataset["completion_ids"]] == ["x<eos>", "good<eos>", "bad<eos>"]
    assert dataset["label"][:] == [False, True, False]
    assert dataset["pair"][:] == [-1, 1, 1]
    assert dataset["rewards"][:] == [[5.0], [1.0], [0.0]]
    assert dataset["source"][:] == ["row 0", "row 1", "row 1"]


def test_named_rewards_get_one_order(tokenizer):
    rows = [
        {**PAIR, "rewards_chosen": {"b": 1, "a": 2}, "rewards_rejected": {"a": 3, "b": 4}},
        {**PAIR, "rewards_chosen": {"a": 5, "b": 6}, "rewards_rejected": {"a": 7, "b": 8}},
    ]
    prepared = run(rows, tokenizer, rewards=2)
    assert prepared.report.reward_names == ("a", "b")
    assert prepared.dataset["rewards_chosen"][:] == [[2.0, 1.0], [5.0, 6.0]]
    assert run(rows, tokenizer, reward_names=("b", "a")).dataset["rewards_chosen"][:] == [[1.0, 2.0], [6.0, 5.0]]
    with pytest.raises(ValueError, match="row 2: rewards_chosen names a; earlier rows named a, b"):
        run([*rows, {**PAIR, "rewards_chosen": {"a": 1}}], tokenizer)


def test_missing_weights_count_with_one_and_other_partial_columns_are_left_out(tokenizer):
    prepared = run([{**PAIR, "weight": 0.5, "margin": 1}, PAIR], tokenizer)
    assert prepared.dataset["weight"][:] == [0.5, 1.0]
    assert "margin" not in prepared.dataset.column_names
    assert prepared.report.notes == [
        "1 of 2 rows have no weight and count with 1.0",
        "only 1 of 2 rows have margin, which the loss does not need: it is left out",
    ]


def test_fields_that_nothing_reads_are_named(tokenizer):
    assert run([{**PAIR, "id": 3, "annotator": "x"}], tokenizer).report.notes == [
        "fields that nothing reads: annotator, id"
    ]


# ---- bad rows ------------------------------------------------------------------------------------------------------


def test_all_kinds_of_bad_rows_in_one_error_with_file_line_and_reason(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(PAIR).encode()
    path.write_bytes(b"\n".join([good, b"{", b'{"a": "\xff"}', b'{"prompt": "p"}', good, b""]))
    with pytest.raises(ValueError, match="3 of 5 rows are bad") as error:
        run(path, tokenizer)
    assert str(error.value).splitlines() == [
        "3 of 5 rows are bad:",
        f"  {path}:2: broken JSON: Expecting property name enclosed in double quotes (column 2)",
        f"  {path}:3: not UTF-8 (byte 7 of the line)",
        f"  {path}:4: chosen and rejected are missing; found the fields prompt",
        'on_bad_row="skip" trains on the others and writes these aside',
    ]


def test_twenty_are_named_and_all_are_counted(tokenizer):
    with pytest.raises(ValueError, match="23 of 2523 rows are bad") as error:
        run([*pairs(2500), *[{"prompt": "p"}] * 23], tokenizer)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:21]] == [f"  row {2500 + i}" for i in range(20)]
    assert lines[21] == "  ... and 3 more"


def test_skipped_rows_are_written_aside_whole(tokenizer, tmp_path):
    path, aside = tmp_path / "rows.jsonl", tmp_path / "run" / "rejected_rows.jsonl"
    bad = {"prompt": "é", "chosen": "same", "rejected": "same", "id": 7}
    path.write_bytes(b"\n".join([json.dumps(row).encode() for row in (PAIR, bad, PAIR)] + [b"{\xff"]))
    prepared = run(path, tokenizer, on_bad_row="skip", rejected_rows=aside)
    assert len(prepared.dataset) == prepared.report.rows_kept == 2
    assert (prepared.report.rows_read, prepared.report.rows_rejected) == (4, 2)
    written = [json.loads(line) for line in aside.read_text(encoding="utf-8").splitlines()]
    assert written == [
        {"source": f"{path}:2", "reason": "chosen and rejected are equal", "row": bad},
        {"source": f"{path}:4", "reason": "not UTF-8 (byte 1 of the line)", "row": "{\\xff"},
    ]
    assert [file.name for file in aside.parent.iterdir()] == ["rejected_rows.jsonl"]


def test_rejected_rows_of_a_run_before_do_not_stay(tokenizer, tmp_path):
    """A run in the same folder that rejects nothing leaves no file that says otherwise; one that fails touches none."""
    aside = tmp_path / "rejected_rows.jsonl"
    for rows, policy, left in (
        ([PAIR, {**PAIR, "chosen": ""}], "skip", True),
        ([{**PAIR, "chosen": ""}], "error", True),
        ([PAIR], "error", False),
    ):
        with suppress(ValueError):
            run(rows, tokenizer, on_bad_row=policy, rejected_rows=aside)
        assert aside.exists() == left


def test_no_good_row_is_an_error_even_when_skipping(tokenizer):
    with pytest.raises(ValueError, match="no row is left to train on: 1 of 1 rows are bad:\n  row 0: chosen is empty"):
        run([{**PAIR, "chosen": ""}], tokenizer, on_bad_row="skip")
    with pytest.raises(ValueError, match="no row to train on: "):
        run(datasets.Dataset.from_dict({"prompt": []}), tokenizer)


def test_rows_without_a_group_are_bad_once_any_row_has_one(tokenizer, tmp_path):
    rows = [*pairs(2), *pairs(1, group="a"), *pairs(1)]
    with pytest.raises(ValueError, match="3 of 4 rows are bad:\n  row 0: group is missing, and other rows have one"):
        run(rows, tokenizer)
    aside = tmp_path / "rejected_rows.jsonl"
    prepared = run(rows, tokenizer, on_bad_row="skip", rejected_rows=aside)
    assert prepared.dataset["source"][:] == ["row 2"]
    assert prepared.dataset["group"][:] == ["a"]
    assert [json.loads(line)["row"] for line in aside.read_text().splitlines()] == [rows[0], rows[1], rows[3]]
    assert "group" not in run(pairs(2), tokenizer).dataset.column_names


def test_labelled_rows_given_to_a_loss_of_pairs(tokenizer):
    with pytest.raises(ValueError, match=r"row 0: a labelled row .* use a loss for labelled rows, such as kto"):
        run([{"prompt": "p", "completion": "c", "label": True}], tokenizer)


def test_half_a_surrogate_pair_is_a_bad_row_not_a_crash(tokenizer, tmp_path):
    path, aside = tmp_path / "rows.jsonl", tmp_path / "rejected_rows.jsonl"
    lines = [json.dumps(PAIR), json.dumps({**PAIR, "chosen": "\ud83d"}), json.dumps({**PAIR, "group": "\ud83d"})]
    path.write_text("\n".join(lines))
    prepared = run(path, tokenizer, on_bad_row="skip", rejected_rows=aside)
    assert [row.reason for row in prepared.report.bad_rows] == ["not UTF-8: the text has half of a surrogate pair"] * 2
    assert len(aside.read_text(encoding="utf-8").splitlines()) == 2


def test_completions_that_repeat_the_prompt_are_pointed_at(tokenizer):
    report = run([{"prompt": "ask", "chosen": "ask good", "rejected": "ask bad"}, PAIR], tokenizer).report
    assert report.prompts_repeated == 1
    assert report.notes[0].startswith("in 1 rows every completion opens with the whole prompt")


# ---- duplicates, mixtures, fingerprints ----------------------------------------------------------------------------


def test_duplicates_are_counted_and_kept(tokenizer):
    prepared = run([PAIR, {**PAIR, "weight": 3}, {**PAIR, "chosen": "other"}, PAIR], tokenizer)
    assert (len(prepared.dataset), prepared.report.duplicates) == (4, 2)


def test_weights_of_a_mixture(tokenizer, write):
    one, two = write(pairs(10), "one.jsonl"), write(pairs(4), "two.jsonl")
    mixture = [{"path": one, "weight": 0.5}, {"path": two, "weight": 2.25}]
    prepared = run(mixture, tokenizer, seed=1)
    sources = prepared.dataset["source"][:]
    assert [place.split(":")[0] for place in sources] == [str(one)] * 5 + [str(two)] * 9
    lines = [int(place.split(":")[1]) for place in sources[:5]]
    assert lines == sorted(set(lines))  # a random half, in the order of the file
    assert sources[5:13] == [f"{two}:{i}" for i in (1, 2, 3, 4)] * 2
    assert [(item.rows_read, item.rows_kept, item.rows_used) for item in prepared.report.sources] == [
        (10, 10, 5),
        (4, 4, 9),
    ]
    assert run(mixture, tokenizer, seed=1).dataset["source"][:] == sources
    assert run(mixture, tokenizer, seed=2).dataset["source"][:] != sources


def test_a_pair_seen_twice_is_two_pairs_of_halves(tokenizer, write):
    rows = [*pairs(2), {"prompt": "p", "completion": "c", "label": True}]
    prepared = run([{"path": write(rows), "weight": 2}], tokenizer, kind="labelled")
    assert prepared.dataset["pair"][:] == [0, 0, 1, 1, -1, 3, 3, 4, 4, -1]
    assert prepared.dataset["label"][:] == [True, False, True, False, True] * 2


def test_fingerprint_follows_content_and_order(tokenizer, write):
    rows = pairs(3)
    same = run(rows, tokenizer).report.fingerprint
    assert run(write(rows), tokenizer).report.fingerprint == same
    assert len(same) == 32
    changed = [
        run(rows[::-1], tokenizer),
        run(rows[:2], tokenizer),
        run([*rows[:2], {**rows[2], "weight": 2}], tokenizer),
        run(rows, tokenizer, max_length=8),
        run([{"path": write(rows), "weight": 0.5}], tokenizer),
    ]
    assert len({same, *(item.report.fingerprint for item in changed)}) == 6
