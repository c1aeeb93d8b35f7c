"""The finished file: its rows do not depend on how much of the draft is mapped at once."""

from pathlib import Path

import pytest

from alignlab.data import DataOptions, prepare
from alignlab.data import rows_file as module

ROWS = [
    {"prompt": f"{number}?", "chosen": " yes" * (number + 1), "rejected": " no", "margin": number / 2}
    for number in range(11)
]
ROWS[4]["rejected"] = ROWS[4]["chosen"]


@pytest.mark.parametrize("kind", ["pairs", "labelled"])
@pytest.mark.parametrize("weight", [1, 2.5])
def test_the_draft_is_mapped_part_by_part(tokenizer, write, monkeypatch, kind, weight):
    """Rows, record batches and mismatched rows stay what they are, and a part is let go before the next but one."""
    options = DataOptions(kind=kind, mismatched=kind == "labelled", on_bad_row="skip")
    source, mapped, maps = [{"path": write(ROWS), "weight": weight}], module._mapped, []

    def watched(path):
        maps.append(Path("/proc/self/maps").read_text().count(f"{path}\n"))
        return mapped(path)

    monkeypatch.setattr(module, "BATCH", 2)
    whole = prepare(source, tokenizer, options, progress=False).dataset
    monkeypatch.setattr(module, "MAPPED", 6)
    monkeypatch.setattr(module, "_mapped", watched)
    parts = prepare(source, tokenizer, options, progress=False).dataset
    rows = 10 * weight * (1 if kind == "pairs" else 2)
    assert len(parts) == rows
    assert len(maps) == 1 + -(-rows // 6)
    assert maps[:3] == [0, 0, 1]
    assert set(maps[2:]) == {1}
    assert parts.data.table.equals(whole.data.table)
    assert [len(one) for one in parts.data.table.to_batches()] == [2] * int(rows // 2) + [1] * int(rows % 2)
