"""The finished file is written from a draft that is mapped, and whose pages do not stay in memory."""

import re
from pathlib import Path

import pytest

from alignlab.data import DataOptions, prepare
from alignlab.data import rows_file as module


@pytest.mark.parametrize("kind", ["pairs", "labelled"])
def test_pages_of_the_draft_are_let_go(tokenizer, monkeypatch, kind):
    """After every second record batch nothing of the draft is in memory, and the rows are the same."""
    ids = [[5 + number] * 1024 for number in range(32)]
    rows = [
        {"prompt_ids": [5, 5 + number], "chosen_ids": ids[number], "rejected_ids": ids[-1 - number]}
        for number in range(16)
    ]
    options = DataOptions(kind=kind, mismatched=kind == "labelled")
    whole = prepare(rows, tokenizer, options, progress=False).dataset
    finished, resident = module._finished, []

    def watched(*given):
        for table in finished(*given):
            yield table
            maps = re.split(r"\n(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text())
            resident.append(sum(int(re.search(r"Rss: +(\d+)", one)[1]) for one in maps if "draft.arrow" in one))

    monkeypatch.setattr(module, "BATCH", 4 if kind == "pairs" else 8)
    monkeypatch.setattr(module, "LET_GO", 2)
    monkeypatch.setattr(module, "_finished", watched)
    assert prepare(rows, tokenizer, options, progress=False).dataset.data.table.equals(whole.data.table)
    assert [kilobytes > 0 for kilobytes in resident] == [True, False, True, False]
