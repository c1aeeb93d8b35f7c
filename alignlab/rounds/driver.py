"""Runs a loop: stage after stage, in this process or under a launcher, from wherever it was left."""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from alignlab.checkpoints import SIGNALS, STOPPED_EARLY, StoppedEarly, only_run_in, write_whole
from alignlab.runtime import say

from .config import RoundsConfig
from .loading import load_rounds
from .report import write_report
from .stages import Stage, all_stages, stages
from .there import check_all_there, check_prompts
from .watch import stopped
from .work import run_stage

logger = logging.getLogger(__name__)
Say = Callable[[str], None]
CONFIG = "rounds.yaml"


@dataclass(frozen=True)
class Rounds:
    """A loop, checked, and where it stands."""

    loop: RoundsConfig

    @classmethod
    def load(cls, config: str | Path | Mapping[str, Any]) -> Rounds:
        """Reads a loop from its YAML, a shipped one's name, or its values."""
        return cls(load_rounds(config))

    def check(self) -> None:
        """Refuses a loop whose files, judges or prompts are not what it takes; nothing is computed or written.

        Raises:
            ValueError: names the dotted key, what was found, and what is allowed.
        """
        check_all_there(self.loop)

    def states(self) -> list[tuple[Stage, str]]:
        """Returns every stage with "done", "begun" or "missing"; nothing is run."""
        found = []
        for stage in all_stages(self.loop):
            begun = stage.folder.is_dir() and any(stage.folder.iterdir())
            found.append((stage, "done" if stage.is_done() else "begun" if begun else "missing"))
        return found

    def run(self, say: Say = say) -> Path:
        """Runs what is missing, writes the report, and returns the folder.

        A stage that is whole is not run again, one that was begun is gone on with: answers lose a batch, a training
        goes on from its newest checkpoint. Nothing is overwritten.

        Raises:
            StoppedEarly: a signal ended a stage; the same call goes on.
            ValueError: something that it names is not there; a stage was made of something else; prompts that decide
                are trained on; another loop runs here.
        """
        loop = self.loop
        self.check()
        loop.folder.mkdir(parents=True, exist_ok=True)
        with only_run_in(loop.folder):
            write_whole(loop.folder / CONFIG, loop.to_yaml())
            for round_ in range(loop.rounds + 1):
                for stage in stages(loop, round_):
                    if not stage.is_done():
                        say(f"round {round_}  {stage.name}")
                        self._run(stage)
                write_report(loop)
                if reason := stopped(loop, round_):
                    say(f"the loop ends after round {round_}: {reason}")
                    break
        return loop.folder

    def run_stage(self, name: str) -> bool:
        """Runs one stage by its name, ``2/train``: what launchers and Slurm jobs call on every rank.

        Raises:
            ValueError: there is no such stage, or one before it is missing.
        """
        known = {str(stage): stage for stage in all_stages(self.loop)}
        if name not in known:
            raise ValueError(f"--stage: expected one of {', '.join(known)}; found {name!r}")
        stage = known[name]
        if not stage.is_done():
            check_prompts(self.loop)
        for before in range(1, stage.round):
            if reason := stopped(self.loop, before):
                logger.info("round %d is not run: %s", stage.round, reason)
                return True
        earlier = list(known).index(name)
        for other in list(known.values())[:earlier]:
            if not other.is_done():
                raise ValueError(f"--stage: {other} comes before {name}, and is not done")
        return run_stage(stage)

    def _run(self, stage: Stage) -> None:
        launched = stage.name in ("sample", "judge", "train") and self.loop.launcher
        if not launched:
            run_stage(stage)
            return
        status = _launched(stage_command(self.loop, stage))
        if status == STOPPED_EARLY:
            raise StoppedEarly(f"stage {stage} was told to stop; the same command goes on")
        if status != 0 or not stage.is_done():
            raise ValueError(f"stage {stage} failed with status {status}; what it said stands above")


def stage_command(loop: RoundsConfig, stage: Stage) -> list[str]:
    """Returns the words that run a stage under the loop's launcher."""
    words = shlex.split(loop.launcher) or [sys.executable, "-m"]
    return [*words, "alignlab", "rounds", str(loop.folder / CONFIG), "--stage", str(stage)]


def _launched(command: list[str]) -> int:
    """Runs a command that signals to this process reach too; returns its exit status."""
    child = subprocess.Popen(command)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {one: signal.signal(one, forward) for one in SIGNALS}
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
