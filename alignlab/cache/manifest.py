"""The manifest of a prepared set: size, checksum and time of every file; what has one is whole."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Forces the files of a folder to the disk, and says beside them what they are."""
    content = {}
    for path in _files_in(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            state = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        content[path.name] = {"bytes": state.st_size, "sha256": digest, "modified": state.st_mtime_ns}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def damage_of(folder: Path, verify: bool = False) -> str:
    """Returns what is wrong with a set that has a manifest, or nothing.

    Sizes are compared, and checksums of what was changed, copied or restored since they were last compared, which
    times tell; with ``verify`` all checksums. A sound file gets back the time at which it was written.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(one["bytes"]), one["sha256"], int(one["modified"])) for name, one in content.items()}
        there = [path.name for path in _files_in(folder)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    if unnamed := [name for name in there if name not in {*files, MANIFEST}]:
        return f"{MANIFEST} does not name {', '.join(unnamed[:3])}"
    if not files:
        return f"{MANIFEST} names no file"
    for name, (size, sha256, modified) in files.items():
        path = folder / name
        try:
            state = path.stat()
            if state.st_size != size:
                return f"{name} has {state.st_size} bytes, expected {size}"
            as_written = abs(state.st_mtime_ns - modified) < 1000
            if as_written and not verify:
                continue
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != sha256:
            return f"sha256 of the {size} bytes of {name} is {found[:12]}..., expected {sha256[:12]}..."
        if not as_written and path.stat().st_mtime_ns == state.st_mtime_ns:
            with suppress(OSError):  # somebody else's file: it is read whole each time
                os.utime(path, ns=(modified, modified))
    return ""


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
