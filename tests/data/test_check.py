"""Statistics by hand, with and without a tokenizer, and the tables that show them."""

import io
import json
import sys

import pytest
from rich.console import Console

from alignlab.data import CheckOptions, DataOptions, as_values, check, open_sources, render, write_page
from alignlab.data.sample import sample
from alignlab.data.shown import sentences

ROWS = [
    {"prompt": "ask", "chosen": "aaaa", "rejected": "b", "group": "x"},
    {"prompt": "ask", "chosen": "aa", "rejected": "bb", "group": "x"},
    {"prompt": "asking", "chosen": "a", "rejected": "bbb", "group": "y"},
    {"prompt": "asking", "chosen": "a", "rejected": "bbb", "group": "y"},
    {"prompt": "ask", "chosen": "[b]", "rejected": "[b]", "group": "y"},
]


def shown(found):
    console = Console(file=io.StringIO(), width=160)
    console.print(render(found))
    return console.file.getvalue()


def test_pairs_without_a_tokenizer_are_counted_in_bytes():
    found = check(ROWS, progress=False)
    assert (found.kind, found.unit) == ("pairs", "bytes")
    assert (found.report.rows_read, found.report.rows_kept, found.report.rows_rejected) == (5, 4, 1)
    assert found.lengths["prompt"].quantiles == (3, 3, 3, 6, 6)
    assert found.lengths["chosen"].quantiles == (1, 1, 1, 4, 4)
    assert found.lengths["chosen"].mean == 2.0
    assert found.lengths["rejected"].mean == 2.25
    assert found.lengths["prompt + longest completion"].quantiles == (5, 5, 7, 9, 9)
    assert (found.bias.longer, found.bias.equal, found.bias.shorter, found.bias.difference) == (0.25, 0.25, 0.5, -0.25)
    assert (found.distinct_prompts, found.report.duplicates, found.groups) == (2, 1, {"x": 2, "y": 2})


def test_with_a_tokenizer_lengths_are_tokens_with_eos(tokenizer):
    found = check(ROWS, tokenizer, progress=False)
    assert found.unit == "tokens"
    assert found.lengths["chosen"].mean == 3.0
    found = check(ROWS, tokenizer, DataOptions(max_length=6), progress=False)
    assert found.report.rows_truncated == 3


def test_labelled_rows():
    rows = [
        {"prompt": "ask", "completion": "a" * length, "label": label}
        for length, label in ((3, True), (5, True), (3, False), (4, False))
    ]
    found = check(rows, progress=False)
    assert (found.kind, found.labels) == ("labelled", {True: 2, False: 2})
    # 3 against 3 and 4: equal, shorter; 5 against 3 and 4: longer, longer
    assert (found.bias.longer, found.bias.equal, found.bias.shorter, found.bias.difference) == (0.5, 0.25, 0.25, 0.5)
    assert check(rows[:2], progress=False).bias is None


def test_conversations_need_no_tokenizer():
    turns = [{"role": "user", "content": "é?"}]
    rows = [{"prompt": turns, "chosen": "yes", "rejected": "no"}]
    found = check(rows, progress=False)
    assert found.lengths["prompt"].quantiles[0] == len("user: é?\nassistant: ".encode())


def test_tables_show_what_was_found():
    text = shown(check(ROWS, progress=False))
    for part in (
        "Rows (pairs)",
        "Lengths in bytes",
        "Groups",
        "Bad rows (1)",
        "chosen and rejected are equal",
        "row 4",
    ):
        assert part in text
    assert (
        "chosen is longer than rejected in 25.0%, equal in 25.0%, shorter in 50.0%; mean difference -0.2 bytes" in text
    )


def test_brackets_in_rows_are_shown_as_they_are():
    rows = [*ROWS[:1], {"prompt": [{"role": "[bold]", "content": "x"}], "chosen": "a", "rejected": "b"}]
    assert "unknown role '[bold]'" in shown(check(rows, progress=False))


def test_nothing_good_is_an_error():
    with pytest.raises(ValueError, match="no row is left to train on"):
        check(ROWS[4:], progress=False)


# ---- what people act on --------------------------------------------------------------------------------------------


def test_truncation_tokens_a_step_and_steps_an_epoch():
    """Two rows of 400 + max(200, 100) = 600 and 3000 + 2000 = 5000 bytes; prompt and both completions: 700, 7000."""
    rows = [
        {"prompt": "p" * 400, "chosen": "c" * 200, "rejected": "r" * 100},
        {"prompt": "p" * 3000, "chosen": "c" * 2000, "rejected": "r" * 2000},
    ]
    found = check(rows, progress=False, asked=CheckOptions(rows_per_step=2))
    assert found.truncation == {512: 1.0, 1024: 0.5, 2048: 0.5, 4096: 0.5, 8192: 0.0}
    assert (found.tokens_per_row, found.rows_per_step, found.steps_per_epoch) == (3850.0, 2, 1)
    assert check(rows * 2, progress=False, asked=CheckOptions(rows_per_step=3)).steps_per_epoch == 2
    assert "3850 bytes a row" in shown(found)
    assert "a step of 2 rows takes 7700 bytes, an epoch 1 step" in shown(found)


def test_longer_wins_counts_equal_ones_half():
    found = check(ROWS, progress=False)
    assert found.bias.longer_wins == 0.25 + 0.25 / 2
    assert '("longer wins") is right in 37.5%' in shown(found)


def test_labels_have_shares():
    rows = [{"prompt": "ask", "completion": f"a{number}", "label": number > 0} for number in range(4)]
    assert "3 (75.0%)" in shown(check(rows, progress=False))


def test_overlap_with_another_set_is_counted_and_named(write):
    train = write(
        [{"prompt": text, "chosen": "a", "rejected": "b"} for text in ("one", "two", "two", "three")], "t.jsonl"
    )
    test = write([{"prompt": text, "chosen": "c", "rejected": "d"} for text in ("two", "four", "one")], "e.jsonl")
    found = check(train, progress=False, asked=CheckOptions(against=test))
    assert (found.overlap.same, found.overlap.near) == (2, None)
    assert found.overlap.examples == ((f"{train}:1", f"{test}:3"), (f"{train}:2", f"{test}:1"))
    assert f"the same prompt in the other set: {train}:2 and {test}:1" in " ".join(sentences(found))


def test_near_duplicates_within_and_across_sets():
    pytest.importorskip("datasketch")
    words = [f"word{number}" for number in range(30)]
    texts = [" ".join(words), " ".join([*words, "more"]), "short"]
    rows = [{"prompt": text, "chosen": "a", "rejected": "b"} for text in texts]
    other = [{"prompt": " ".join([*words, "other"]), "chosen": "a", "rejected": "b"}]
    found = check(rows, progress=False, asked=CheckOptions(near=True, against=other))
    assert (found.near.count, found.near.examples) == (1, (("row 1", "row 0"),))
    assert (found.overlap.same, found.overlap.near.count) == (0, 2)
    assert "nearly the same prompt in the other set: row 0 and row 0" in sentences(found)


def test_near_duplicates_without_the_library_are_said_not_to_be_looked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)  # an import of it fails
    found = check(ROWS, progress=False, asked=CheckOptions(near=True))
    assert "near-duplicate prompts were not looked for: pip install 'alignlab[near]' brings datasketch" in sentences(
        found
    )


def test_a_sample_is_the_same_each_time_and_keeps_places(write):
    rows = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b"} for number in range(40)]
    paths = [write(rows[:10], "a.jsonl"), write(rows[10:], "b.jsonl")]
    found = check(paths, progress=False, asked=CheckOptions(rows=12))
    assert (found.report.rows_read, found.sampled_of, len(found.report.sources)) == (12, 40, 2)
    parts, count = sample(open_sources(paths), 12)
    again, _ = sample(open_sources(paths), 12)
    places = [place for part in parts for place, _ in part.read()]
    assert places == [place for part in again for place, _ in part.read()]
    assert count == 40
    lines = [(path, int(line)) for path, line in (place.rsplit(":", 1) for place in places)]
    assert len(set(lines)) == 12
    assert lines == sorted(lines)
    assert {path for path, _ in lines} == {str(path) for path in paths}
    assert check(paths, progress=False, asked=CheckOptions(rows=99)).report.rows_read == 40


def test_a_sample_is_drawn_from_everywhere():
    """Of 1000 rows 100 are drawn: about 25 of each quarter, and the first rows have no better chance than the last."""
    (part,), _ = sample(open_sources([{"number": number} for number in range(1000)]), 100)
    quarters = [row["number"] // 250 for _, row in part.read()]
    assert [quarters.count(quarter) for quarter in range(4)] == [21, 29, 31, 19]


def test_figures_as_json_and_as_a_page(tmp_path):
    hostile = "</td><script>alert(1)</script>\u202e"
    rows = [{**row, "group": hostile} for row in ROWS]
    found = check(rows, progress=False)
    values = json.loads(json.dumps(as_values(found)))
    assert values["report"]["bad_rows"] == [{"source": "row 4", "reason": "chosen and rejected are equal"}]
    assert (values["bias"]["longer_wins"], values["truncation"]["512"]) == (0.375, 0.0)
    page = write_page(found, tmp_path / "new" / "check.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\u202e" in page
    assert "5 rows read, 4 kept, 1 bad; pairs; lengths in bytes." in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_counts_the_bad_rows_that_it_does_not_show(tmp_path):
    rows = [{"prompt": "ask", "chosen": "a", "rejected": "b"}] + [{"prompt": "ask", "chosen": "a"}] * 23
    page = write_page(check(rows, progress=False), tmp_path / "check.html").read_text(encoding="utf-8")
    assert page.count("rejected is missing") == 20
    assert "<p>... and 3 more.</p>" in page


def test_what_is_asked_is_checked():
    with pytest.raises(ValueError, match="rows_per_step must be at least 1, found 0"):
        CheckOptions(rows_per_step=0)
    with pytest.raises(ValueError, match="rows must be at least 1, found 0"):
        CheckOptions(rows=0)
