"""What launchers ask of a process that they start: to overlook a word of theirs, and to end without a teardown."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence


def without_local_rank(words: Sequence[str]) -> list[str]:
    """Takes out ``--local_rank=N``, which DeepSpeed's launcher puts first; the environment variable says the same."""
    kept = []
    for word in words:
        name, _, rank = word.partition("=")
        if name in ("--local_rank", "--local-rank") and rank.isdigit():
            os.environ.setdefault("LOCAL_RANK", rank)
        else:
            kept.append(word)
    return kept


def leave(status: int) -> int:
    """Ends a process that a launcher started without tearing the interpreter down; otherwise returns ``status``.

    Gloo's threads can outlive the interpreter's finalisation and abort a run whose work is done (exit status -6).
    """
    import torch.distributed

    if "LOCAL_RANK" not in os.environ or not torch.distributed.is_initialized():
        return status
    torch.distributed.barrier()
    atexit._run_exitfuncs()  # os._exit skips them, and loggers finish their uploads there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
