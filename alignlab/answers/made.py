"""What a file or a folder was made of: done is only what matches, byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from alignlab.cache import default_root, file_memory
from alignlab.checkpoints import write_whole
from alignlab.data import file_hash

FORMAT = "alignlab-made-1"


class Made:
    """The manifest of one step's output: what went in, what came out.

    Holds no time and no machine, so that the same step leaves the same bytes wherever and however often it is begun.

    Args:
        manifest: where it is written. The outputs that it names lie in the same folder.
        of: what the outputs depend on, as plain values: options, and hashes of what was read.
    """

    def __init__(self, manifest: Path, of: Mapping[str, Any]) -> None:
        self.manifest, self.of = manifest, json.loads(json.dumps(dict(of), default=str))

    def is_done(self) -> bool:
        """True where a manifest says that this was made, and all of it is still what was written."""
        found = self.read()
        return found.get("of") == self.of and not self.damages(found)

    def others(self) -> list[str]:
        """Returns what tells the output that is there from this one, a line each; none where none is there."""
        found = self.read().get("of", {})
        keys = unlike(found, self.of) if found else []
        return [f"{key}: {_short(found.get(key))} -> {_short(self.of.get(key))}" for key in keys]

    def check_free(self, output: Path) -> None:
        """Raises a ValueError where something else stands in the place of ``output``."""
        if others := self.others():
            raise ValueError(
                f"--output: {output} was made of something else ({'; '.join(others[:3])}); "
                "choose another file, or delete it"
            )
        if output.exists() and not self.is_done():
            why = "; ".join(self.damages()) or "nothing says what it is"
            raise ValueError(f"--output: {output} is there, and {why}; choose another file, or delete it")

    def damages(self, found: Mapping[str, Any] | None = None) -> list[str]:
        """Returns what is wrong with the outputs, a line each."""
        wrong = []
        for name, digest in (found or self.read()).get("outputs", {}).items():
            path = self.manifest.parent / name
            if not path.is_file():
                wrong.append(f"{path} is missing")
            elif file_hash(path, file_memory(default_root())).hex() != digest:
                wrong.append(f"{path} is not what was written")
        return wrong

    def read(self) -> dict[str, Any]:
        """Returns the manifest; empty where there is none that can be read."""
        try:
            found: dict[str, Any] = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("format") == FORMAT else {}

    def finish(self, outputs: Iterable[Path], account: Mapping[str, Any] | None = None) -> None:
        """Says that all is whole.

        Args:
            outputs: files in the manifest's folder, or below it. account: what became of what went in.
        """
        self._write({one: file_digest(one) for one in sorted(outputs)}, account)

    def announce(self, output: Path, aside: Path, account: Mapping[str, Any] | None = None) -> None:
        """Says what a file will be that is whole and not in its place yet: a kill never leaves one unexplained.

        Args:
            output: its place. aside: where it was written. account: what became of what went in.
        """
        self._write({output: file_digest(aside)}, account)

    def _write(self, digests: Mapping[Path, str], account: Mapping[str, Any] | None) -> None:
        folder = self.manifest.parent
        outputs = {path.relative_to(folder).as_posix(): digest for path, digest in digests.items()}
        text = {"format": FORMAT, "of": self.of, "outputs": outputs, "account": dict(account or {})}
        write_whole(self.manifest, json.dumps(text, indent=1) + "\n")

    @property
    def account(self) -> dict[str, Any]:
        """What became of what went in, as the manifest says."""
        found: dict[str, Any] = self.read().get("account", {})
        return found


def made_beside(output: Path, of: Mapping[str, Any]) -> Made:
    """Returns the manifest of a single file, which stands beside it."""
    return Made(output.with_name(f"{output.name}.made.json"), of)


def alone_with(path: Path) -> FileLock:
    """Returns the lock of who writes a file; it lies beside it and stays. Who has it may take it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _lock(path.with_name(f".{path.name}.lock").resolve())


@cache
def _lock(path: Path) -> FileLock:
    """Returns this process's one lock of a file, which counts how often it is held."""
    return FileLock(path)


def unlike(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Returns the keys that two descriptions do not share, or whose values differ."""
    return [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
