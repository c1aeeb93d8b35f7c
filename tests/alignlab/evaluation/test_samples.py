"""Answers from before the first step are kept whole: a run that is resumed reads them again."""

from __future__ import annotations

from pathlib import Path

from dying import dies_at

from alignlab.evaluation import SampleAnswers


def test_a_death_while_samples_are_written_leaves_those_of_before(tmp_path: Path) -> None:
    """Half a file was no JSON, and every further start of the run failed on it."""
    samples = object.__new__(SampleAnswers)
    samples.path, samples.max_new_tokens = tmp_path / "samples.json", 8
    samples.rows = [{"prompt": "p", "before": "b", "after": None}]
    samples._write()
    before = samples.path.read_bytes()
    samples.rows[0]["after"] = "a"
    assert dies_at(0, samples._write)
    assert samples.path.read_bytes() == before
    samples._write()
    assert b'"after": "a"' in samples.path.read_bytes()
