"""The identity of a prepared set: a hash over everything that its bytes depend on, and over nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .files import files_of
from .identity import file_hash
from .options import DataOptions
from .sources import Source, is_saved_dataset

NOT_CONTENT = ("rejected_rows",)  # options that say where something is written, not what


def prepared_key(
    sources: Iterable[Source], tokenizer: PreTrainedTokenizerBase, options: DataOptions, seed: int, memory: Path
) -> str:
    """Returns the name of the set that ``prepare`` makes of these: 32 hex digits.

    blake2b over the bytes and the path of every source file (of hub sets: what ``datasets`` loaded, by its revision;
    of rows in memory: the rows), weights and columns of the mixture, the tokenizer with its chat template, the
    options, the seed where a weight picks rows by it, the code of this room, and the versions of the libraries that
    read, render and tokenise.

    Args:
        sources: as ``prepare`` is given them, and so are the next three.
        tokenizer: with its chat template.
        options: what becomes of rows.
        seed: of the rows that a weight picks.
        memory: folder that remembers the hash of a file under its path, size and times, so that it is read once.

    Raises:
        ValueError: a source cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    sources = list(sources)
    picked = [seed] if any(source.weight % 1 for source in sources) else []
    digest.update(repr((_code(), _versions(), _tokenizer(tokenizer), _options(options), picked)).encode())
    if "strftime_now" in str(tokenizer.chat_template):
        digest.update(str(date.today()).encode())  # the template may write the date into prompts
    for source in sources:
        told = [getattr(source, item.name) for item in fields(source) if item.name not in ("rows", "columns")]
        digest.update(repr((told, sorted(source.columns.items()))).encode())
        for part in _content(source, memory):
            digest.update(part)
    return digest.hexdigest()


def _content(source: Source, memory: Path) -> Iterator[bytes]:
    path = Path(source.path).expanduser()
    if source.rows is not None:
        yield from _rows(source.rows)
    elif path.is_dir():
        files = sorted(path.rglob("*")) if is_saved_dataset(path) else files_of(path)
        for file in (file for file in files if file.is_file()):
            yield str(file.relative_to(path)).encode() + file_hash(file, memory)
    elif path.exists():
        yield file_hash(path, memory)
    else:
        loaded = source.load_hub()
        names = [Path(file["filename"]).parts[-4:] for file in getattr(loaded, "cache_files", [])]
        yield repr((getattr(loaded, "_fingerprint", ""), names, str(loaded.info.version), source.revision())).encode()


def _rows(rows: Any) -> Iterator[bytes]:
    if isinstance(rows, Dataset) and rows.format["type"] != "custom":
        for table in rows.with_format("arrow").iter(batch_size=10_000):
            for column in table.combine_chunks().columns:
                yield repr(column.to_pylist()).encode("utf-8", "backslashreplace")
        yield repr(rows.column_names).encode()
        return
    for row in rows:
        yield repr(row).encode("utf-8", "backslashreplace")


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns 32 hex digits that tell a tokenizer and its chat template from any that makes other tokens."""
    return hashlib.blake2b(repr(_tokenizer(tokenizer)).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    tokenizer("a")  # a tokenizer forgets the padding and truncation of the call before
    if tokenizer.is_fast:
        words = tokenizer.backend_tokenizer.to_str()
    else:
        words = repr((sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.init_kwargs.items()))))
    special = sorted(map(str, tokenizer.special_tokens_map.items()))
    around = tokenizer("a")["input_ids"], tokenizer.eos_token_id
    return type(tokenizer).__name__, words, special, tokenizer.chat_template, around


def _options(options: DataOptions) -> list[tuple[str, str]]:
    values = ((item.name, getattr(options, item.name)) for item in fields(options) if item.name not in NOT_CONTENT)
    return [
        (name, json.dumps(dict(value), sort_keys=True, default=repr) if isinstance(value, Mapping) else repr(value))
        for name, value in values
    ]


def _code() -> list[bytes]:
    """The code of this room: whatever of it changes, sets are prepared anew, and nobody has to remember to say so."""
    return [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]


def _versions() -> list[str]:
    return [version(name) for name in ("transformers", "tokenizers", "datasets", "pyarrow", "jinja2")]
