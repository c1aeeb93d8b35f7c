"""Lives of runs for the drills: processes forked from one that has imported everything, to be killed at a moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOAD = [
    *("alignlab.cli", "alignlab.run.single", "transformers.models.llama.modeling_llama", "deepspeed", "torch._dynamo"),
    *("alignlab.report.page", "transformers.integrations.deepspeed", "accelerate.utils.deepspeed", "pytest"),
]
SHARD_ROWS = 8  # completions a shard of the score cache, so that a few rows make several


class Life:
    """One process that runs ``alignlab train``; what it prints stands in ``log``, its phases come through a pipe."""

    def __init__(
        self, folder: Path, words: list[str], environment: Mapping[str, str] | None = None, before: Any = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"life-{len(list(folder.glob('life-*')))}.log"
        self.phases, theirs = context.Pipe(duplex=False)
        variables = {"ALIGNLAB_CACHE": str(folder / "scores"), **(environment or {})}
        arguments = (words, self.log_path, variables, theirs, before)
        self.process = context.Process(target=live, args=arguments)
        self.phase = "start"
        self.process.start()
        theirs.close()

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")  # a kill may fall within a character

    def reach(self, phase: str) -> bool:
        """Waits until the process enters a phase; False if it ended before."""
        while self._next_phase():
            if self.phase == phase:
                return True
        return False

    def _next_phase(self) -> bool:
        try:
            self.phase = self.phases.recv()
        except EOFError:
            return False
        return True

    def kill(self) -> str:
        """Kills with SIGKILL; returns the phase in which it fell, or "ended" if the process was faster."""
        self.process.kill()
        status = self.end()
        while self._next_phase():
            pass
        assert status in (0, -9), self.log
        return self.phase if status else "ended"

    def end(self, seconds: float = 120) -> int:
        """Returns the exit status once the process is gone."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.log}")
        return int(self.process.exitcode)


def live(
    words: list[str], log: Path, environment: Mapping[str, str], phases: Connection, before: Callable[[], None] | None
) -> None:
    """What a life does: the command, with its exit status."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    import torch

    from alignlab.cli import main
    from alignlab.reference import filling as scoring_pass
    from alignlab.training.resumable import ResumableTrainer
    from alignlab.training.trainer import PreferenceTrainer

    torch.set_num_threads(1)
    scoring_pass.SHARD_ROWS = SHARD_ROWS
    _tell(phases, scoring_pass.CacheFiller, "_score", "scoring")
    _tell(phases, PreferenceTrainer, "training_step", "training")
    _tell(phases, ResumableTrainer, "_save_checkpoint", "saving")
    if before is not None:
        before()
    status = main(["train", *words])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _tell(phases: Connection, owner: type, name: str, phase: str) -> None:
    """Lets a method say through the pipe when it begins and when it has ended; it is left as it is otherwise."""
    method = getattr(owner, name)

    def telling(*args: Any, **kwargs: Any) -> Any:
        phases.send(phase)
        result = method(*args, **kwargs)
        phases.send(f"after {phase}")
        return result

    setattr(owner, name, telling)


def losses_of(run: Path) -> list[float]:
    """Returns the logged losses of a finished run."""
    state = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]
