"""A loop that is killed again and again, in other batches each time, ends with the bytes of one that was left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_four_kills_and_two_ranks(tmp_path: Path) -> None:
    """``benchmarks/loop_kills.py``, which kills twelve times by itself; its lives are forks of a fresh process."""
    program = Path(__file__).resolve().parents[1] / "benchmarks" / "loop_kills.py"
    words = [sys.executable, str(program), "--kills", "4", "--ranks", "--folder", str(tmp_path / "loop")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "4 kills: 73 files, other: none" in done.stdout
    assert "two ranks: 73 files, other: none" in done.stdout
