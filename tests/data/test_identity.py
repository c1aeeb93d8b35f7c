"""What a source file is known by: its bytes, which are read once for each state that it is seen in."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from alignlab.data import sources_digest


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose bytes were read."""
    found, digest = [], hashlib.file_digest

    def told(file: Any, name: str) -> Any:
        found.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", told)
    return found


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, reads: list[str]) -> None:
    """A byte that changes is seen, at the same size; a file as it was is not read at the next start."""
    path, memory = tmp_path / "rows.jsonl", tmp_path / "memory"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    os.utime(path, (1e9, 1e9))
    first = sources_digest(str(path), memory)
    assert sources_digest(str(path), memory) == first
    assert reads == ["rows.jsonl"]
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "d"}\n')
    os.utime(path, (1.1e9, 1.1e9))
    second = sources_digest(str(path), memory)
    assert second != first
    assert sources_digest(str(path), memory) == second
    assert reads == ["rows.jsonl", "rows.jsonl"]


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    """Its time of change cannot tell a later change within the same tick."""
    path, memory = tmp_path / "rows.jsonl", tmp_path / "memory"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert sources_digest(str(path), memory) == sources_digest(str(path), memory)
    assert reads == ["rows.jsonl", "rows.jsonl"]
