"""Kills a loop of three rounds twelve times at random moments, and compares what comes out byte for byte.

    python benchmarks/loop_kills.py [--kills 12] [--seed 0] [--folder DIR]

One run is left alone; a second is killed (SIGKILL) again and again and gone on with, answers in other batches each
time; a third samples and judges on two ranks. Every file of the second and the third must be that of the first, but
for those that hold times or versions (``TIMED``). Lives are forks of one process, so that imports are paid once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from making import make_model, make_rows, make_tokenizer
from tqdm.std import tqdm

from alignlab.rounds import Rounds

TIMED = ("metrics.json", "environment.json", "trainer_state.json", "data.json", "training_args.bin", "rounds.yaml")
HIDDEN = ("checkpoint-", ".")  # the newest checkpoints of a run, and locks
JUDGE = "def short(prompt, answer):\n    return -float(len(answer))\n"
OTHER = "def letters(prompt, answer):\n    return float(len(set(answer)))\n"


def values(folder: Path, output: Path, batch: int = 8) -> dict[str, Any]:
    """Returns the loop: three rounds of eight prompts, four answers each, four steps with a checkpoint after each."""
    train = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "report": False}
    train |= {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True, "eval_strategy": "no"}
    return {
        "config": "dpo.yaml",
        "output_dir": str(output),
        "rounds": 3,
        "start": str(folder / "start"),
        "prompts": {"path": str(folder / "prompts.jsonl"), "per_round": 8},
        "sample": {"samples": 4, "max_new_tokens": 12, "batch_size": batch, "unfinished": "keep"},
        "judge": {"short": f"{folder / 'judge.py'}:short"},
        "train": train | {"data.eval_rows": None, "score_cache_dir": str(output / "scores")},
        "stop": {"prompts": str(folder / "held.jsonl"), "judge": f"{folder / 'other.py'}:letters", "patience": 9},
    }


def make(folder: Path) -> None:
    """Writes model, prompts and judges."""
    make_model(initializer_range=0.3).save_pretrained(folder / "start")
    make_tokenizer().save_pretrained(folder / "start")
    rows = [{"prompt": row["prompt"]} for row in make_rows(60)]
    unique = list({str(row["prompt"]): row for row in rows}.values())
    for name, some in (("prompts", unique[:24]), ("held", unique[24:32])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    (folder / "judge.py").write_text(JUDGE, encoding="utf-8")
    (folder / "other.py").write_text(OTHER, encoding="utf-8")


def life(work: Callable[[], object], seconds: float | None = None) -> int:
    """Runs work in a fork, perhaps killed after so many seconds; returns its status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                work()
            status = 0
        finally:
            os._exit(status)
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            end = None
        time.sleep(0.01)


def run(told: dict[str, Any]) -> None:
    """One life of the loop."""
    Rounds.load(told).run(lambda _: None)


def files(folder: Path) -> dict[str, bytes]:
    """Returns what is compared."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = parts[0] == "scores" or any(part.startswith(HIDDEN) for part in parts)
        if path.is_file() and path.name not in TIMED and not hidden:
            found["/".join(parts)] = path.read_bytes()
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Returns the names of files that are not the same; stages name the folder that they lie in nowhere."""
    mine, theirs = files(one), files(other)
    return sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))


def two_ranks(told: dict[str, Any]) -> None:
    """Runs each stage by its name, those that sample and judge on two ranks."""
    output = Path(told["output_dir"])
    output.mkdir(parents=True)
    (output / "rounds.yaml").write_text(json.dumps(told), encoding="utf-8")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for stage, _ in Rounds.load(told).states():
        if stage.name in ("sample", "judge"):
            words = ["alignlab", "rounds", str(output / "rounds.yaml"), "--stage", str(stage)]
            subprocess.run([*launch, *words], check=True, env=env, capture_output=True)
        elif (status := life(lambda stage=stage: Rounds.load(told).run_stage(str(stage)))) != 0:
            raise RuntimeError(f"{stage} ended with {status}")
    life(lambda: run(told))  # the report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--ranks", action="store_true", help="also on two ranks")
    told = parser.parse_args()
    folder = told.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(told.seed)
    tqdm.set_lock(threading.RLock())  # forks share the usual one: who is killed with it stops all that come later
    make(folder)
    # One folder for all, moved away when a run is whole: paths stand in configs, and must be the same.
    work = folder / "work"
    began = time.monotonic()
    assert life(lambda: run(values(folder, work))) == 0
    whole = time.monotonic() - began
    work.rename(folder / "alone")
    print(f"left alone: {whole:.0f} s, {len(files(folder / 'alone'))} files", flush=True)
    kills = 0
    while kills < told.kills:
        batch, seconds = rng.choice([1, 3, 8, 32]), rng.uniform(0.01, 0.12) * whole
        status = life(lambda batch=batch: run(values(folder, work, batch)), seconds)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        kills += 1
        done = sum(1 for _ in work.rglob("stage.json"))
        print(f"kill {kills} after {seconds:.1f} s, in batches of {batch}: {done} stages are whole", flush=True)
    assert life(lambda: run(values(folder, work, 5))) == 0
    found = differences(folder / "alone", work)
    print(f"{kills} kills: {len(files(work))} files, other: {found or 'none'}", flush=True)
    if told.ranks:
        work.rename(folder / "killed")
        two_ranks(values(folder, work))
        others = differences(folder / "alone", work)
        print(f"two ranks: {len(files(work))} files, other: {others or 'none'}", flush=True)
        found += others
    if told.folder is None:
        shutil.rmtree(folder)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
