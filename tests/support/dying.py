"""Deaths at a chosen change of a file: what a killed process leaves behind, without a process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir")


class Died(BaseException):
    """The process is gone; only tests catch it."""


def dies_at(number: int, do: Callable[[], object]) -> bool:
    """Calls ``do`` until it changes files for the time ``number`` (from 0), which is not done, nor any change after it.

    Returns:
        whether it died there; else it came to its end before.
    """
    done = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done >= number:
                raise Died
            done += 1
            return change(*args, **kwargs)

        return changing

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            do()
        except Died:
            return True
    return False
