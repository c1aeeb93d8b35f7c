"""Errors of loading a model or a tokenizer, said with its path and with what may stand there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 300  # characters of what a library says
_MEMORY = ("MemoryError", "OutOfMemoryError")  # nothing is wrong with the files


@contextmanager
def loading(what: str, path: str) -> Iterator[None]:
    """Names what was being loaded, and from where, in whatever a library raises meanwhile.

    Args:
        what: "model", "tokenizer" or "adapter".

    Raises:
        ValueError: it could not be loaded.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ in _MEMORY:
            raise
        raise ValueError(f"the {what} of {path!r} cannot be loaded: {_reason(what, path, error)}") from error


def _reason(what: str, path: str, error: Exception) -> str:
    words = next(iter(str(error).strip().splitlines()), "")[:_LONGEST] or "no message"
    if Path(path).is_file():
        return "it is a file, and has to be a folder, or the id of a model on the hub"
    if Path(path).exists():
        return f"{type(error).__name__}: {words}"
    keys = "model.adapter and ref_adapter" if what == "adapter" else "model.name_or_path and its like"
    return (
        f"there is no such folder, and no {'adapter' if what == 'adapter' else 'model'} of the hub by that name could "
        f"be had ({keys} take a folder or a hub id; {words})"
    )
