"""``alignlab score``: fills the score cache for a run, and stops."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .launched import leave
from .parsers import add_reader
from .train import read_config

USAGE = """usage: alignlab score CONFIG.yaml [--KEY VALUE ...]

Fill the score cache with what the frozen models of such a run say of its data, and stop before training: once, on
one machine, so that the runs of a sweep or a job on dearer GPUs find every score. The config and its keys are those
of `alignlab train`; these matter here:

  --data.train FILE               and --data.eval FILE: what is scored
  --model.name_or_path PATH       the policy, which is the reference unless another one is named:
  --ref_model_name_or_path PATH   another model, or --ref_adapter PATH: a saved adapter
  --score_cache_dir DIR           where the scores are kept
  --precompute_ref_batch_size N   completions a forward

`alignlab train --help-all` lists every key. Exit status: 0 all is scored, 2 a mistake in config or data.

examples:
  alignlab score dpo.yaml --model.name_or_path path/to/sft-model --data.train pairs.jsonl
  alignlab score dpo.yaml --ref_model_name_or_path path/to/other --data.train pairs.jsonl --bf16 true ..."""


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
