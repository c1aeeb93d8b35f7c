"""Fixtures for every test: offline, a tokenizer, a saved tiny model, a score cache of one's own."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from making import make_model, make_tokenizer
from transformers import PreTrainedTokenizerFast


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
    """What a command makes of the log's level ends with its test."""
    ours = logging.getLogger("alignlab")
    before = ours.level
    yield
    ours.setLevel(before)
