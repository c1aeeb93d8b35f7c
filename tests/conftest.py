"""Fixtures for every test: offline, a tokenizer, a saved tiny model, caches of one's own; the longest files first."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny, and workers and the ranks that they start share cores
# What libraries cache goes neither into the user's home nor into another worker's.
_HOME = tempfile.TemporaryDirectory(prefix="alignlab-tests-")
os.environ["HF_HOME"] = _HOME.name

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from making import make_model, make_tokenizer
from tqdm.std import tqdm
from transformers import PreTrainedTokenizerFast

tqdm.set_lock(threading.RLock())  # forks share the usual one: a child that is killed with it stops its parent, too

# A file is one worker's, so those of minutes come first; that of Slurm mostly waits.
LONGEST = ("slurm_real", "engines", "drills", "zoo_trainer", "repro", "engine_numerics", "gpu_benchmark", "fsdp_lives")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first and the rooms' last, so that no worker is left with minutes when the others are done."""
    places, top = {f"test_{name}": place for place, name in enumerate(LONGEST)}, Path(__file__).parent
    items.sort(key=lambda item: places.get(item.path.stem, len(places) + (item.path.parent != top)))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A saved tiny model with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tests out of the user's score cache."""
    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path / "scores"))


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """What a command makes of the log's level ends with its test, and that a benchmark mutes all logs."""
    ours = logging.getLogger("alignlab")
    before, muted = ours.level, logging.root.manager.disable
    yield
    ours.setLevel(before)
    logging.disable(muted)
