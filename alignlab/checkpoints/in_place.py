"""What a run leaves at its end: written aside, then put into its folder, so that there is a whole model or none."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from alignlab.runtime import from_main, gathered, is_main, wait_for_all

from .folders import SAVING, force_to_disk, holds_checkpoints, make_afresh

logger = logging.getLogger(__name__)

READY = ".ready-"  # whole, and on its way into the folder: a start after a kill goes on with that
_NAMES = ".names.json"  # what READY holds, or held before a part of it was moved
_KEYSTONES = ("adapter_config.json", "config.json")  # without either nobody takes a folder for a model
_CARD = "README.md"
_WEIGHTS = re.compile(r"(adapter_)?(pytorch_)?model[^/]*\.(safetensors|bin)(\.index\.json)?")


@contextmanager
def put_in_place(folder: Path, what: str, *, together: bool = True) -> Iterator[Path]:
    """Gives all ranks one hidden folder to write into; what is in it then stands in ``folder``, all of it or nothing.

    Files are forced to disk before anything moves. Of a model the file that makes it one, ``config.json`` or
    ``adapter_config.json``, goes first out and comes last in, so that at no moment a folder loads that is half of the
    former model and half of the new one. A kill before the move leaves the folder as it was, and one during the move
    is made good by ``clean_up``, which the next run in the folder calls.

    Args:
        what: "model" or whatever else it is; names the hidden folder, and what a message speaks of.
        together: whether all ranks are here; otherwise only the one that writes.

    Raises:
        OSError: it could not be written, a full disk for instance; says that nothing of it was put in place.
        ValueError: the ranks do not share the folder.
    """
    ask = from_main if together else _alone
    aside, ready = folder / f"{SAVING}{what}", folder / f"{READY}{what}"
    try:
        ask(lambda: make_afresh(aside))
        if together and not all(gathered(aside.is_dir())):
            raise ValueError(f"output_dir: {folder} must be a folder that all ranks share")
        yield aside
        if together:
            wait_for_all()
        ask(lambda: _make_ready(aside, ready))
    except (OSError, SafetensorError, RuntimeError) as error:
        free = shutil.disk_usage(folder).free / 1e6
        if is_main() or not together:
            shutil.rmtree(aside, ignore_errors=True)
        kept = holds_checkpoints(folder)
        rest = "" if kept is None else f"; {kept.name} is there"
        raise OSError(
            f"{folder}: the {what} could not be saved ({free:.1f} MB are free there): {error}; nothing of it was put "
            f"in place{rest}"
        ) from error
    ask(lambda: _move(ready, folder))


def is_peoples_own(path: Path) -> bool:
    """True for a README.md that is no model card: one opens with a block of YAML."""
    return path.name == _CARD and path.is_file() and not path.read_bytes().startswith(b"---")


def _alone(ask: Callable[[], None]) -> None:
    ask()


def clean_up(folder: Path) -> None:
    """Finishes what a killed run was putting in place, and removes what it had not written whole; says so."""
    for ready in sorted(folder.glob(f"{READY}*")):
        _move(ready, folder)
        logger.warning("%s: a killed run had saved the %s; it is in place", folder, ready.name.removeprefix(READY))
    for aside in sorted(folder.glob(f"{SAVING}*")):
        what = aside.name.removeprefix(SAVING)
        if not what.startswith("checkpoint-"):
            shutil.rmtree(aside, ignore_errors=True)
            logger.warning("%s: a killed run was saving the %s; the unfinished files are deleted", folder, what)


def write_whole(path: Path, text: str) -> None:
    """Writes a file aside and renames it: what was there before, or the whole."""
    with whole_file(path) as file:
        file.write(text.encode())


@contextmanager
def whole_file(path: Path, before: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """Gives a file to write that stands at ``path`` once it is whole; an error leaves what was there before.

    Several processes may write the same file at once: the last one stays.

    Args:
        before: is called with the file where it was written, forced to disk, and not renamed yet.
    """
    aside = path.with_name(f"{_aside(path)}{secrets.token_hex(4)}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def remove_asides(path: Path) -> None:
    """Deletes what processes that were killed had written of a file; for who alone may write it."""
    for aside in path.parent.glob(f"{glob.escape(_aside(path))}*"):
        aside.unlink(missing_ok=True)


def _aside(path: Path) -> str:
    return f".{path.name}.new-"


def _make_ready(aside: Path, ready: Path) -> None:
    """Forces all of it to disk and renames it; from here on it will be put in place, whatever happens."""
    names = sorted(path.name for path in aside.iterdir())
    (aside / _NAMES).write_text(json.dumps(names), encoding="utf-8")
    for path in aside.rglob("*"):
        force_to_disk(path)
    force_to_disk(aside)
    shutil.rmtree(ready, ignore_errors=True)
    aside.rename(ready)
    force_to_disk(ready.parent)


def _move(ready: Path, folder: Path) -> None:
    """Moves what is ready into the folder, in the place of what is there; may be done again from any point of it."""
    if not (ready / _NAMES).is_file():  # all is moved, and a part of what held it deleted
        shutil.rmtree(ready, ignore_errors=True)
        return
    names = json.loads((ready / _NAMES).read_text(encoding="utf-8"))
    weights = [match for name in names if (match := _WEIGHTS.fullmatch(name))]
    if weights:
        there = [match for one in folder.iterdir() if (match := _WEIGHTS.fullmatch(one.name))]
        stale = [
            one[0] for one in there if one[0] not in names and one[1] == weights[0][1]
        ]  # an adapter's, or a model's
        for name in (*(one for one in _KEYSTONES if (ready / one).exists()), *stale):
            (folder / name).unlink(missing_ok=True)
        force_to_disk(folder)
    for name in sorted(names, key=lambda one: (one in _KEYSTONES, one)):
        if (ready / name).exists():
            _replace(ready / name, folder / name)
    force_to_disk(folder)
    (ready / _NAMES).unlink()
    shutil.rmtree(ready, ignore_errors=True)


def _replace(new: Path, old: Path) -> None:
    if is_peoples_own(old):
        logger.warning("%s is no model card, and stays as it is; the card of this run is left out", old)
        new.unlink()
        return
    if old.is_dir():
        shutil.rmtree(old)
    new.replace(old)
