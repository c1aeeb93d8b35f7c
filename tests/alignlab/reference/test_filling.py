"""The reference pass as processes live it: killed in the middle, two at once, a damaged shard found by the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import make_model, make_rows, make_tokenizer

from alignlab import PreferenceConfig, PreferenceTrainer
from alignlab.cache import cache_prune
from alignlab.cache.lock import WriterLock, lock_path

SHARD = 8
SCRIPT = """
import logging, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from making import make_model, make_rows, make_tokenizer
from alignlab import PreferenceConfig, PreferenceTrainer
from alignlab.reference import filling as scoring_pass

logging.basicConfig(level=logging.INFO, format="%(message)s")
folder, kill_after, pause = Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
scoring_pass.SHARD_ROWS = {shard}
count, forward = 0, scoring_pass.CacheFiller._forward

def counted(self, module, sequences, *rest):
    global count
    count += len(sequences)
    if kill_after and count > kill_after:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(pause)
    return forward(self, module, sequences, *rest)

scoring_pass.CacheFiller._forward = counted
args = PreferenceConfig(output_dir=str(folder / "run"), score_cache_dir=str(folder / "cache"), max_steps=3,
    per_device_train_batch_size=4, precompute_ref_batch_size=4, learning_rate=1e-2, logging_steps=1,
    save_strategy="no", disable_tqdm=True)
run = PreferenceTrainer(make_model(), args, "dpo", make_rows(32), None, make_tokenizer())
print("FORWARDS", run.frozen["reference"].forwards, flush=True)
run.train()
print("LOSSES", [entry["loss"] for entry in run.state.log_history if "loss" in entry], flush=True)
""".replace("{shard}", str(SHARD))
RANKS = """
import os, sys
from pathlib import Path
from making import make_model, make_rows, make_tokenizer
from alignlab import PreferenceConfig, PreferenceTrainer

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
args = PreferenceConfig(output_dir=str(folder / "run"), score_cache_dir=str(folder / "cache"), save_strategy="no",
    disable_tqdm=True)
try:
    PreferenceTrainer(make_model(), args, "dpo", make_rows(8), None, make_tokenizer(), ref_model=str(folder / "empty"))
except Exception as error:
    (folder / rank).write_text(f"{type(error).__name__}: {error}")
os._exit(0)
"""


SUPPORT = Path(__file__).parents[2] / "support"


def start(folder: Path, kill_after: int = 0, pause: float = 0.0) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SCRIPT, str(SUPPORT), str(folder), str(kill_after), str(pause)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def result(process: subprocess.Popen[str]) -> tuple[int, list[float], str]:
    """Returns completions scored, losses and the log of a process that ended well."""
    out, log = process.communicate(timeout=200)
    assert process.returncode == 0, log[-3000:]
    found = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in out.splitlines() if " " in line}
    return int(found["FORWARDS"]), json.loads(found["LOSSES"]), log


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run that scored everything itself."""
    scored, losses, _ = result(start(tmp_path_factory.mktemp("fresh")))
    assert scored == 64
    return losses


@pytest.mark.slow
def test_a_kill_loses_at_most_one_shard(fresh: list[float], tmp_path: Path) -> None:
    """Killed while completion 37 of 64 is scored: of 36 scored ones at most one shard of 8 is scored again."""
    killed = start(tmp_path, kill_after=36)
    killed.communicate(timeout=200)
    assert killed.returncode == -signal.SIGKILL
    scored, losses, _ = result(start(tmp_path))
    assert 64 - 36 <= scored <= 64 - 36 + SHARD
    assert losses == fresh


@pytest.mark.slow
def test_two_processes_on_one_cache_score_once(fresh: list[float], tmp_path: Path) -> None:
    """Started together: one scores, the other waits for it and reads."""
    both = [start(tmp_path, pause=0.2), start(tmp_path, pause=0.2)]
    results = [result(process) for process in both]
    assert sorted(scored for scored, _, _ in results) == [0, 64]
    assert results[0][1] == results[1][1] == fresh


@pytest.mark.slow
def test_a_flipped_byte_is_named_and_rescored(fresh: list[float], tmp_path: Path) -> None:
    """One byte of one shard: the shard is named in the log, its rows are scored again, the losses are the same."""
    result(start(tmp_path))
    shard = sorted((tmp_path / "cache").rglob("*.safetensors"))[2]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    scored, losses, log = result(start(tmp_path))
    assert 0 < scored <= SHARD
    assert shard.name in log
    assert losses == fresh


@pytest.mark.slow
def test_what_rank_0_finds_wrong_is_raised_on_every_rank(tmp_path: Path) -> None:
    """Rank 0 alone opens the reference, in a folder without a model; the other rank says the same and does not hang."""
    (tmp_path / "empty").mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run([*torchrun, str(script), str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / rank).read_text() for rank in "01")
    assert str(tmp_path / "empty") in first
    assert second == first


WAITING = """
import logging, sys
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from making import make_model, make_rows, make_tokenizer
from alignlab import PreferenceConfig, PreferenceTrainer
from alignlab.reference import filling

logging.basicConfig(level=logging.WARNING, format="%(message)s")
filling.LOCK_SECONDS = 1.0
folder = Path(sys.argv[1])
args = PreferenceConfig(output_dir=str(folder / "run"), score_cache_dir=str(folder / "cache"), save_strategy="no",
    disable_tqdm=True, ddp_timeout=6, max_steps=1)
run = PreferenceTrainer(make_model(), args, "dpo", make_rows(8), None, make_tokenizer())
(folder / f"scored{args.process_index}").write_text(str(run.frozen["reference"].forwards))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_another_run_may_hold_the_lock_for_longer_than_collectives_may_take(tmp_path: Path) -> None:
    """Two ranks whose collectives time out after 6 s wait for a lock that is let go 10 s after they asked for it."""
    (tmp_path / "ranks.py").write_text(WAITING)
    run = make_trainer_fingerprint(tmp_path)
    lock = WriterLock(lock_path(tmp_path / "cache", run))
    assert lock.acquire(seconds=0)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    words = [*torchrun, str(tmp_path / "ranks.py"), str(tmp_path)]
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        waits = next((line for line in process.stderr if "waiting for it to finish" in line), "")
        assert str(lock.path) in waits
        time.sleep(10)
        lock.release()
        rest = process.stderr.read()
    assert process.returncode == 0, rest[-3000:]
    assert [int((tmp_path / f"scored{rank}").read_text()) for rank in (0, 1)] == [16, 0]


def make_trainer_fingerprint(folder: Path) -> str:
    """Returns the fingerprint under which the ranks of the test above score."""
    model = make_model()
    args = PreferenceConfig(output_dir=str(folder / "one"), score_cache_dir=str(folder / "other"), save_strategy="no")
    run = PreferenceTrainer(model, args, "dpo", make_rows(1), None, make_tokenizer())
    store = run.frozen["reference"].store
    assert store is not None
    return store.fingerprint


def test_scores_that_are_pruned_as_soon_as_the_lock_is_free_are_those_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were opened after the lock, and the run ended with a word on folders that ranks do not share."""
    release, pruned = WriterLock.release, []

    def pruning(lock: WriterLock) -> None:
        release(lock)
        if lock.work.startswith("scoring"):
            pruned.extend(cache_prune(tmp_path / "cache", max_gb=0))

    monkeypatch.setattr(WriterLock, "release", pruning)
    args = PreferenceConfig(
        output_dir=str(tmp_path / "run"), score_cache_dir=str(tmp_path / "cache"), disable_tqdm=True
    )
    run = PreferenceTrainer(make_model(), args, "dpo", make_rows(4), None, make_tokenizer())
    frozen = run.frozen["reference"]
    assert frozen.store is not None
    assert frozen.forwards == len(frozen.store) == 8
    assert len(pruned) == 1
