"""``alignlab train``: trains as a config says."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .console import show, start_logging
from .launched import leave
from .parsers import add_reader

USAGE = """usage: alignlab train CONFIG.yaml [--KEY VALUE ...]

CONFIG.yaml is a file, or the name of a shipped config (dpo, hh). Every key can
stand in it and on the command line, where dots reach into blocks:

  --model.name_or_path PATH          the policy: a folder or a hub id
  --data.train FILE                  and --data.eval FILE or --data.eval_rows N
  --loss.name NAME --loss.beta 0.1   `alignlab losses` lists them
  --peft.r 16                        train an adapter in place of all weights
  --output_dir DIR                   the run folder (runs/CONFIG by default)
  --learning_rate 1e-6 --num_train_epochs 1 --max_steps N
  --per_device_train_batch_size 8 --gradient_accumulation_steps 1
  --max_length 1024 --bf16 true --deepspeed zero2.json
  --resume_from_checkpoint auto      go on from the newest checkpoint
  --progress lines                   plain lines; live: a moving line; none

`alignlab train --help-all` lists every key. Exit status: 0 done, 1 an error of
a library, 2 a mistake in config or data, 75 told to stop, with a checkpoint.

examples:
  alignlab train dpo --model.name_or_path path/to/sft --data.train pairs.jsonl
  alignlab train runs/dpo/config.yaml --resume_from_checkpoint auto
"""


def add_to(commands: Any) -> None:
    """Names the command; its options are the keys of the config."""
    text = "train as a config says: alignlab train CONFIG.yaml [--loss.beta 0.2 --learning_rate 1e-6 ...]"
    add_reader(commands, "train", text)


def main(words: Sequence[str]) -> int:
    """Trains, or says how; returns the exit status."""
    if "--help-all" in words:
        return _help_all()
    if not words or {"-h", "--help"} & set(words):
        print(USAGE, end="")
        return 0
    return leave(_train(words))


def read_config(command: str, words: Sequence[str]) -> Any:
    """Returns the config that the words name, overridden as they say, and turns on the log of the run."""
    from alignlab.config import load_config, split_command_line

    config, options = split_command_line(words)
    if config is None:
        raise ValueError(f"which config? alignlab {command} CONFIG.yaml [--KEY VALUE ...]")
    start_logging()
    return load_config(config, [f"--{key}={text}" for key, text in options])


def _train(words: Sequence[str]) -> int:
    config = read_config("train", words)
    from alignlab.checkpoints import STOPPED_EARLY, StoppedEarly
    from alignlab.run import train

    try:
        folder = train(config)
    except StoppedEarly as stopped:
        print(f"alignlab: {stopped}", file=sys.stderr, flush=True)
        if not stopped.together and "LOCAL_RANK" in os.environ:
            os._exit(STOPPED_EARLY)  # other ranks do not know of it, so none may be waited for
        return STOPPED_EARLY
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(what_is_left(config, folder)), flush=True)
    return 0


def what_is_left(config: Any, folder: Path) -> list[str]:
    """Returns what a run says at its end: where the model lies, where the report, and what to do next."""
    base, evaluated = config.model.name_or_path, config.data.eval
    adapter = f" (an adapter on {base})" if (folder / "adapter_config.json").is_file() else ""
    lines = [f"model:   {folder}{adapter}"]
    if (folder / "merged").is_dir():
        lines.append(f"merged:  {folder / 'merged'}")
    if (folder / "report.html").is_file():
        lines.append(f"report:  {folder / 'report.html'}")
    data = evaluated if isinstance(evaluated, str) else "HELD_OUT.jsonl"
    reference = config.training.get("ref_model_name_or_path") or base
    words = ["alignlab", "eval", str(folder), "--reference", reference, "--data", data]
    return [*lines, f"next:    {shlex.join(words)}"]


def _help_all() -> int:
    from alignlab.config import schema

    from .tables import keys_table

    print(USAGE)
    for title, keys in schema().groups.items():
        show(keys_table(title, keys), "")
    return 0
