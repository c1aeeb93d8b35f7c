"""A model that a run leaves is whole or not there: killed at any moment, and with the disk full at any byte."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from making import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.checkpoints import only_run_in, put_in_place
from alignlab.checkpoints.in_place import write_whole

KILLS = 20
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")  # as Python's audit hooks call them


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> list[dict[str, bytes]]:
    """Two models with other weights, the first in several files, the second in one: their files by name."""
    found = []
    for seed, shards in ((0, "40KB"), (1, "1GB")):
        folder = tmp_path_factory.mktemp("whole")
        make_model(seed).save_pretrained(folder, max_shard_size=shards)
        tokenizer.save_pretrained(folder)
        found.append(content(folder))
    assert len(found[0]) > len(found[1])
    return found


def save(files: dict[str, bytes], folder: Path) -> None:
    """Saves a model as a run does; its bytes are known, so that a forked process needs no library of threads."""
    with put_in_place(folder, "model", together=False) as aside:
        for name, data in files.items():
            (aside / name).write_bytes(data)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def forked(do: Callable[[], None], before: Callable[[], None]) -> int:
    """Runs something in a process forked from this one; returns the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        before()
        do()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def killed_at(event: int, folder: Path) -> Callable[[], None]:
    """Makes a process kill itself right before its ``event``-th change of a file in a folder."""
    seen = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if name in EVENTS and str(folder) in str(arguments[0]):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(hook)


def killed_behind(size: int) -> Callable[[], None]:
    """Makes a process die in the middle of writing a file, behind so many bytes of it."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def is_none(folder: Path) -> bool:
    return not (folder / "config.json").exists()


@pytest.mark.parametrize("former", [None, 0])
def test_kills_leave_a_whole_model_or_none(models: list[dict[str, bytes]], tmp_path: Path, former: int | None) -> None:
    """Twenty kills with and without a former model: at once and after the next start in the folder, it is never half.

    Half of the kills fall between two changes of files, the others within one.
    """
    rng, fell = random.Random(3), 0
    old, new = {} if former is None else models[former], models[1]
    for kill in range(KILLS):
        folder = tmp_path / f"{kill}"
        folder.mkdir()
        if old:
            save(old, folder)
        largest = len(new["model.safetensors"])
        ending = killed_at(1 + 2 * kill, folder) if kill % 2 else killed_behind(rng.randrange(largest))
        fell += forked(partial(save, new, folder), ending) != 0
        assert is_none(folder) or content(folder) in (old, new)
        with only_run_in(folder):
            assert content(folder) in (old, new)
        assert not [path for path in folder.iterdir() if path.name.startswith((".saving-", ".ready-"))]
        save(new, folder)
        assert content(folder) == new
    assert fell >= KILLS - 4


@pytest.mark.parametrize(("former", "later"), [(0, 1), (1, 0)])
def test_every_change_of_a_file_may_be_the_last(
    models: list[dict[str, bytes]], tmp_path: Path, former: int, later: int
) -> None:
    """Killed before each change of a file that the save makes, from several shards to one, and from one to several."""
    old, new = models[former], models[later]
    event, died = 1, True
    while died:
        folder = tmp_path / str(event)
        folder.mkdir()
        save(old, folder)
        died = forked(partial(save, new, folder), killed_at(event, folder)) != 0
        assert is_none(folder) or content(folder) in (old, new), event
        with only_run_in(folder):
            assert content(folder) in (old, new), event
        event += 1
    assert content(folder) == new
    assert event > 30


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow larger than so many bytes: what a full disk is, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1000, 30_000])
def test_a_full_disk_leaves_the_former_model(models: list[dict[str, bytes]], tmp_path: Path, size: int) -> None:
    save(models[0], tmp_path)
    with disk_of(size), pytest.raises(OSError, match=rf"^{tmp_path}: the model could not be saved .* in place$"):
        save(models[1], tmp_path)
    assert content(tmp_path) == models[0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.hidden_size == 32
    assert len(AutoTokenizer.from_pretrained(tmp_path)) > 250
    assert not (tmp_path / ".saving-model").exists()


def test_an_adapter_beside_a_model_deletes_nothing_of_it(models: list[dict[str, bytes]], tmp_path: Path) -> None:
    save(models[1], tmp_path)
    with put_in_place(tmp_path, "model", together=False) as aside:
        (aside / "adapter_model.safetensors").write_text("weights")
        (aside / "adapter_config.json").write_text("{}")
    assert content(tmp_path) == models[1] | {
        "adapter_model.safetensors": b"weights",
        "adapter_config.json": b"{}",
    }


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "before")
    with disk_of(3), pytest.raises(OSError, match="File too large"):
        write_whole(tmp_path / "a.json", "afterwards")
    assert content(tmp_path) == {"a.json": b"before"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
