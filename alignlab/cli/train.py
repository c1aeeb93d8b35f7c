"""``alignlab train``: trains as a config says."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from .console import show
from .launched import leave
from .parsers import add_reader

USAGE = """usage: alignlab train CONFIG.yaml [--KEY VALUE ...]

CONFIG.yaml is a file, or the name of a shipped config. Every key below can stand in it and on the command line,
where dots reach into blocks: --loss.beta 0.2 --learning_rate 1e-6 --peft.r 16
"""


def add_to(commands: Any) -> None:
    """Names the command; its options are the keys of the config."""
    text = "train as a config says: alignlab train CONFIG.yaml [--loss.beta 0.2 --learning_rate 1e-6 ...]"
    add_reader(commands, "train", text)


def main(words: Sequence[str]) -> int:
    """Trains, or lists every key; returns the exit status."""
    if not words or {"-h", "--help"} & set(words):
        return _help()
    return leave(_train(words))


def read_config(command: str, words: Sequence[str]) -> Any:
    """Returns the config that the words name, overridden as they say, and turns on the log of the run."""
    from alignlab.config import load_config, split_command_line

    config, options = split_command_line(words)
    if config is None:
        raise ValueError(f"which config? alignlab {command} CONFIG.yaml [--KEY VALUE ...]")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("alignlab").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    return load_config(config, [f"--{key}={text}" for key, text in options])


def _train(words: Sequence[str]) -> int:
    config = read_config("train", words)
    from alignlab.checkpoints import STOPPED_EARLY, StoppedEarly
    from alignlab.run import train

    try:
        train(config)
    except StoppedEarly as stopped:
        print(f"alignlab: {stopped}", file=sys.stderr, flush=True)
        if not stopped.together and "LOCAL_RANK" in os.environ:
            os._exit(STOPPED_EARLY)  # other ranks do not know of it, so none may be waited for
        return STOPPED_EARLY
    return 0


def _help() -> int:
    from alignlab.config import schema

    from .tables import keys_table

    print(USAGE)
    for title, keys in schema().groups.items():
        show(keys_table(title, keys), "")
    return 0
