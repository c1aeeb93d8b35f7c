"""One run a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignlab.checkpoints.lock import HOLDER, only_run_in

SCRIPT = "import sys, time; from pathlib import Path; from alignlab.checkpoints.lock import only_run_in\n"
SCRIPT += "with only_run_in(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.mark.slow
def test_one_run_a_folder_until_it_dies(tmp_path: Path, monkeypatch: Any) -> None:
    """Refused while another process lives, naming it; free as soon as it is killed; held twice by one process."""
    other = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    monkeypatch.setattr("alignlab.checkpoints.lock._PATIENCE", 0.1)
    with (
        pytest.raises(ValueError, match=rf"another run is writing to .* \(process {other.pid} on "),
        only_run_in(tmp_path),
    ):
        pass
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with only_run_in(tmp_path), only_run_in(tmp_path):
        assert (tmp_path / HOLDER).read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_that_cannot_be_made_names_the_key(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="output_dir: the folder cannot be made: File name too long"),
        only_run_in(tmp_path / ("x" * 300)),
    ):
        pass
