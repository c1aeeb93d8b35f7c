"""A real ``transformers serve`` on a free port, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launching import BIN, free_port


@contextmanager
def transformers_serve(model: Path, home: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Serves a model's folder for as long as the block lasts; yields the process and its address, up to ``/v1``.

    The server loads the folder before it listens, and answers with it whatever model a request names. It prints into
    ``home/serve.log``.

    Args:
        home: a folder for the server's hub cache, without whose ``hub`` ``/v1/models`` fails, and for its log.
    """
    (home / "hub").mkdir(parents=True, exist_ok=True)
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    port = free_port()
    words = [str(BIN / "transformers"), "serve", str(model), "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    with (home / "serve.log").open("wb") as log:
        server = subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            _until_it_listens(server, f"http://127.0.0.1:{port}/health", home / "serve.log")
            yield server, f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()
            server.wait()


def _until_it_listens(server: subprocess.Popen[bytes], health: str, log: Path, seconds: int = 300) -> None:
    for _ in range(10 * seconds):
        assert server.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
        try:
            with urllib.request.urlopen(health, timeout=10) as answer:
                assert answer.status == 200
                return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(f"no server after {seconds} s: {log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
