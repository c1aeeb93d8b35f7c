"""The manifest of a prepared set: it names every file that is there, or the set is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignlab.cache.manifest import MANIFEST, damage_of, write_manifest


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        ("{}", f"{MANIFEST} does not name report.json, rows.arrow"),
        ("[]", f"{MANIFEST} cannot be read (AttributeError)"),
        ("null", f"{MANIFEST} cannot be read (AttributeError)"),
        ('{"rows.arrow": {}}', f"{MANIFEST} cannot be read (KeyError)"),
    ],
)
def test_a_manifest_that_does_not_name_what_is_there(tmp_path: Path, content: str, damage: str) -> None:
    for name in ("rows.arrow", "report.json", ".lock"):
        (tmp_path / name).write_text(name)
    write_manifest(tmp_path)
    assert damage_of(tmp_path) == ""
    (tmp_path / MANIFEST).write_text(content)
    assert damage_of(tmp_path) == damage
    for name in ("rows.arrow", "report.json"):
        (tmp_path / name).unlink()
    assert (damage_of(tmp_path) == f"{MANIFEST} names no file") == (content == "{}")
