"""``alignlab score``: fills the score cache for a run, and stops."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .launched import leave
from .parsers import add_reader
from .train import read_config

USAGE = "usage: alignlab score CONFIG.yaml [--KEY VALUE ...]\n\nThe config and its keys are those of a training."


def add_to(commands: Any) -> None:
    """Names the command; its options are the keys of the config."""
    text = "fill the score cache for such a run, and stop: alignlab score CONFIG.yaml [--KEY VALUE ...]"
    add_reader(commands, "score", text)


def main(words: Sequence[str]) -> int:
    """Scores, and says how much of it was left to do; returns the exit status."""
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    config = read_config("score", words)
    from alignlab.run import score

    for name, count in score(config).items():
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}: " + (f"{count} completions scored here" if count else "every completion is scored"))
    return leave(0)
