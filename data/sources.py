"""Rows from files, folders, the hub, mixtures of them and Python objects, each with the place it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .chunks import Chunk, Located, chunked, given
from .files import SUFFIXES, files_of, read_file
from .known import FORMATS

MOST_PASSES = 10_000  # of one source in an epoch: more is a slip of the pen, and fills the disk


@dataclass(frozen=True)
class Source:
    """One source of a mixture.

    Attributes:
        path: a file, a folder or a hub id; empty when ``rows`` holds the rows.
        weight: passes over the source per epoch: 1 is every row once, 0.5 a random half, 2.5 every row twice and a
            random half once more.
        split, name: split (default "train") and configuration of a hub data set.
        columns: ``{our name: their name}``.
        format: the public set that the rows are read as, or "own"; None recognises it by its fields.
        streaming: whether a hub data set is read from the hub row by row, and never lies on the disk as a whole.
        rows: rows given as Python objects.
    """

    path: str = ""
    weight: float = 1.0
    split: str | None = None
    name: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None
    streaming: bool = False
    rows: Any = None

    def __post_init__(self) -> None:
        number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight < float("inf"):
            raise ValueError(f"{self}: weight must be a number above 0, found {self.weight!r}")
        if self.weight > MOST_PASSES:
            raise ValueError(
                f"{self}: weight is {self.weight:g}, as many passes over it an epoch; allowed are up to "
                f"{MOST_PASSES:,} (num_train_epochs makes more passes)"
            )
        if self.format is not None and self.format not in FORMATS:
            near = get_close_matches(str(self.format), FORMATS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{self}: format is {self.format!r}, allowed are {', '.join(FORMATS)}{hint}")

    def __str__(self) -> str:
        return self.path or "rows"

    def read(self) -> Iterator[Located]:
        """Yields every row with its place; a row that cannot be read comes as ``Broken``."""
        for chunk in self.chunks(1000):
            yield from chunk.rows()

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yields the rows in chunks of ``size`` at most, which are parsed where their ``rows`` are asked for."""
        for chunk in self._chunks(size):
            chunk.source, chunk.columns, chunk.format = str(self), self.columns, self.format
            yield chunk

    def _chunks(self, size: int) -> Iterator[Chunk]:
        if self.rows is not None:
            yield from chunked(((f"row {index}", given(row)) for index, row in enumerate(self.rows)), size)
            return
        path = Path(self.path).expanduser()
        if path.is_dir():
            if is_saved_dataset(path):
                yield from chunked(self._saved_dataset(path), size)
                return
            for file in files_of(path):
                yield from read_file(file, size)
        elif path.exists():
            yield from read_file(path, size)
        else:
            yield from chunked(self._hub(), size)

    def _saved_dataset(self, path: Path) -> Iterator[Located]:
        import datasets

        try:
            dataset = datasets.load_from_disk(str(path))
        except Exception as error:  # whatever the library makes of a folder that is damaged
            raise ValueError(f"{path}: cannot be read as a saved data set ({type(error).__name__}: {error})") from error
        if isinstance(dataset, datasets.DatasetDict):
            dataset = dataset[_split_of(dataset, self.split, self.path)]
        for index, row in enumerate(dataset):
            yield f"{self.path}:{index + 1}", row

    def load_hub(self) -> Any:
        """Returns the hub data set that ``path`` names.

        Raises:
            ValueError: it is no hub id, or cannot be loaded.
        """
        import datasets

        if _looks_like_a_file(self.path):
            raise ValueError(f"{self.path}: no such file or folder")
        try:
            return datasets.load_dataset(
                self.path, name=self.name, split=self.split or "train", streaming=self.streaming
            )
        except Exception as error:  # the hub client raises many kinds, and every one of them means the same here
            raise ValueError(
                f"{self.path}: no such file or folder, and it could not be loaded as a hub data set "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
            ) from error

    def revision(self) -> str:
        """Returns the commit of a hub set that is streamed; others say it by the files that they were loaded from.

        Raises:
            ValueError: the hub does not say it.
        """
        if not self.streaming:
            return ""
        import huggingface_hub

        try:
            return str(huggingface_hub.HfApi().dataset_info(self.path).sha)
        except Exception as error:
            raise ValueError(f"{self.path}: the hub does not say its revision ({type(error).__name__})") from error

    def _hub(self) -> Iterator[Located]:
        for index, row in enumerate(self.load_hub()):
            yield f"{self.path}:{index + 1}", row


def open_sources(source: Any) -> list[Source]:
    """Turns what the user gave into sources that can be read more than once.

    Args:
        source: a path or hub id, a mapping ``{path, weight, split, name, columns, format, streaming}``, a list of
            these, a ``datasets.Dataset`` or ``IterableDataset``, or any iterable of rows.

    Raises:
        ValueError: an entry of a mixture has an unknown key or no path, or the mixture is empty.
    """
    if isinstance(source, (str, Path)):
        return [Source(path=str(source))]
    kind = type(source).__name__
    if kind in ("DatasetDict", "IterableDatasetDict"):
        raise ValueError(f"a data source is one set of rows, found a {kind} of {', '.join(source)}; give one of them")
    if kind == "DataFrame":
        raise ValueError("a data source is no DataFrame; give datasets.Dataset.from_pandas(frame)")
    if isinstance(source, Mapping):
        return [_from_mapping(source)]
    if not isinstance(source, Iterable):
        raise ValueError(f"a data source is a path, a mapping with a path, a list of these, or rows; found {source!r}")
    if iter(source) is source:  # a generator can be read only once, and we may have to read twice
        source = list(source)
    if isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("the list of data sources is empty")
        if all(isinstance(entry, Source) for entry in source):
            return list(source)
        if all(isinstance(entry, (str, Path)) or (isinstance(entry, Mapping) and "path" in entry) for entry in source):
            return [_from_mapping(entry) if isinstance(entry, Mapping) else Source(str(entry)) for entry in source]
    return [Source(rows=source)]


def _from_mapping(entry: Mapping[str, Any]) -> Source:
    allowed = [item.name for item in fields(Source) if item.name != "rows"]
    for key in entry:
        if key not in allowed:
            near = get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"unknown key {key!r} of a data source, allowed are {', '.join(allowed)}{hint}")
    if not entry.get("path"):
        raise ValueError(f"a data source needs a path, found {dict(entry)!r}")
    return Source(**{**entry, "path": str(entry["path"])})


def check_there(path: str) -> None:
    """Refuses a path that can only be a file or a folder, and is not there; nothing is read, and no hub is asked.

    Raises:
        ValueError: there is no such file or folder.
    """
    if not Path(path).expanduser().exists() and _looks_like_a_file(path):
        raise ValueError(f"{path}: no such file or folder")


def is_saved_dataset(folder: Path) -> bool:
    """True for a folder that ``datasets`` saved."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _split_of(dataset: Any, split: str | None, path: str) -> str:
    if (split or "train") not in dataset:
        raise ValueError(f"{path}: no split {split or 'train'!r}; found {', '.join(dataset)}")
    return split or "train"


def _looks_like_a_file(path: str) -> bool:
    name = Path(path).name.removesuffix(".gz")
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or Path(name).suffix.lower() in SUFFIXES
