"""Raw HH-RLHF dialogues: made-up ones by hand, and the real file where it is at hand."""

import os
from pathlib import Path

import pytest

from alignlab.data import DataOptions, prepare
from alignlab.data.dialogue import common_prefix, split_dialogues
from alignlab.data.schema import RowError

START = "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: More?\n\nAssistant:"


def test_replies_after_a_shared_dialogue():
    prompt, sides = split_dialogues({"chosen": START + " Yes.", "rejected": START + " No."})
    assert prompt == START
    assert sides == {"chosen": [(" Yes.", True)], "rejected": [(" No.", True)]}


def test_dialogues_that_part_earlier_count_only_the_assistants_words():
    early = "\n\nHuman: Hi?\n\nAssistant:"
    prompt, sides = split_dialogues(
        {"chosen": early + " One.\n\nHuman: More?\n\nAssistant: Two.\n\nAssistant: Three.", "rejected": early + " No."}
    )
    assert prompt == early
    assert sides["rejected"] == [(" No.", True)]
    assert sides["chosen"] == [
        (" One.", True),
        ("\n\nHuman: More?\n\nAssistant:", False),
        (" Two.", True),
        ("\n\nAssistant:", False),
        (" Three.", True),
    ]


def test_dialogue_that_ends_with_the_human():
    early = "\n\nHuman: Hi?\n\nAssistant:"
    _, sides = split_dialogues({"chosen": early + " One.\n\nHuman: Bye.", "rejected": early + " No."})
    assert sides["chosen"] == [(" One.", True), ("\n\nHuman: Bye.", False)]


def test_no_eos_is_taught_after_the_human(tokenizer):
    early = "\n\nHuman: Hi?\n\nAssistant:"
    row = {"chosen": early + " One.\n\nHuman: Bye.", "rejected": early + " No."}
    found = prepare([row], tokenizer, DataOptions(), progress=False).dataset[0]
    assert tokenizer.decode(found["chosen_ids"]) == " One.\n\nHuman: Bye."
    assert sum(found["chosen_mask"]) == len(" One.")
    assert tokenizer.decode(found["rejected_ids"]) == " No.<eos>"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (START, START + " No.", "chosen is empty after the prompt's last 'Assistant:'"),
        (START + " ", START + " No.", "chosen is empty after the prompt's last 'Assistant:'"),
        (START + " a\n\nHuman: b\n\nAssistant: ", START + " No.", "chosen ends with an empty assistant's turn"),
        (
            "\n\nHuman: a\n\nAssistant: b",
            "\n\nHuman: c\n\nAssistant: d",
            r"chosen and rejected share no '\\n\\nAssistant:' turn",
        ),
    ],
)
def test_bad_dialogues(chosen, rejected, reason):
    with pytest.raises(RowError, match=reason):
        split_dialogues({"chosen": chosen, "rejected": rejected})


def test_labelled_dialogue_ends_with_its_completion(tokenizer):
    row = {"completion": START + " Yes.", "label": True}
    found = prepare([row], tokenizer, DataOptions(kind="labelled"), progress=False).dataset[0]
    assert tokenizer.decode(found["prompt_ids"]) == START
    assert tokenizer.decode(found["completion_ids"]) == " Yes.<eos>"


def test_common_prefix():
    assert common_prefix(["abcx", "abcy", "abz"]) == "ab"
    assert common_prefix(["abc", "ab"]) == "ab"
    assert common_prefix(["x", "y"]) == ""
    assert common_prefix(["same", "same"]) == "same"


HH = Path(
    os.environ.get(
        "ALIGNLAB_HH", Path(__file__).parents[2].parent / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"
    )
)


@pytest.mark.skipif(not HH.exists(), reason=f"the HH-RLHF file is not at {HH} (set ALIGNLAB_HH)")
@pytest.mark.parametrize("kind", ["pairs", "labelled"])
def test_every_row_of_hh_rlhf_is_trained_on_or_named(tokenizer, kind):
    """Four replies in the file are empty, on lines found by hand; five dialogues part before their last reply."""
    prepared = prepare(HH, tokenizer, DataOptions(kind=kind, on_bad_row="skip", max_length=None), progress=False)
    report = prepared.report
    assert (report.rows_read, report.rows_kept, report.rows_rejected) == (2312, 2308, 4)
    assert {(row.source, row.reason) for row in report.bad_rows} == {
        (f"{HH}:{line}", "chosen is empty after the prompt's last 'Assistant:'") for line in (87, 517, 926, 1104)
    }
    places = dict.fromkeys(prepared.dataset["source"][:])
    assert len(places) == 2308
    assert len({*places, *(row.source for row in report.bad_rows)}) == 2312
    partly = prepared.dataset.filter(
        lambda row: any(not all(mask) for name, mask in row.items() if name.endswith("_mask")), keep_in_memory=True
    )
    assert {int(place.rsplit(":", 1)[1]) for place in partly["source"]} == {1255, 1689, 1951, 1953, 2037}
