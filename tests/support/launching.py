"""Starts real ranks: the runs of ``engine_ranks.py`` under a launcher."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine_ranks

BIN = Path(sys.executable).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
DEEPSPEED = [str(BIN / "deepspeed"), "--num_gpus", "2"]


def free_port() -> str:
    """Returns a port that nobody listens on, below those that systems give to connections by themselves.

    A launcher binds it some 20 s later: by then one of the system's choice may be another process's.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as free:
            try:
                free.bind(("", port))
            except OSError:
                continue
            return str(port)


def with_port(words: list[str]) -> list[str]:
    """Returns a launcher's words; torchrun finds a port by itself, DeepSpeed's always takes the same one."""
    return [*words, "--master_port", free_port()] if words == DEEPSPEED else words


def launch(words: list[str], folder: Path, out: Path, runs: list[dict[str, Any]]) -> str:
    """Runs ``engine_ranks.py`` under a launcher; returns what it said. Offload's first launch compiles for a minute."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    env["PYTHONPATH"] = str(Path(engine_ranks.__file__).parent)
    command = [*with_port(words), engine_ranks.__file__, str(folder), str(out), json.dumps(runs)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout + done.stderr
