"""Prepared sets: made once for one content, whole or not at all, and mapped by everybody else."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import IterableDataset
from dying import dies_at
from making import make_rows, make_tokenizer

from alignlab.cache import COLUMN, PreparedSets, ScoreCache, cache_info, cache_prune, cache_verify, manifest
from alignlab.data import DataOptions, prepare

SUPPORT = Path(__file__).parents[2] / "support"
CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from making import make_tokenizer
from alignlab.cache import PreparedSets
from alignlab.data import DataOptions

print("READY", flush=True)
sys.stdin.readline()
found = PreparedSets(Path(sys.argv[2]), workers=int(sys.argv[4]), progress=False).open(
    sys.argv[3], make_tokenizer(), DataOptions(kind="labelled", mismatched=True))
print(found.report.fingerprint, flush=True)
"""


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", make_rows(30))


@pytest.fixture
def makings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders in which sets were prepared."""
    made: list[Path] = []

    def counted(*args: Any) -> Any:
        made.append(args[-1])
        return prepare(*args)

    monkeypatch.setattr("alignlab.cache.prepared.prepare", counted)
    return made


def sets(root: Path, workers: int = 1) -> PreparedSets:
    return PreparedSets(root / "cache", workers, progress=False)


def test_a_second_start_maps_what_the_first_made(
    source: Path, tmp_path: Path, tokenizer: Any, makings: list[Path]
) -> None:
    first = sets(tmp_path).open(str(source), tokenizer, DataOptions())
    again = sets(tmp_path, workers=3).open(str(source), make_tokenizer(), DataOptions(rejected_rows=tmp_path / "no"))
    assert len(makings) == 1
    assert again.report == first.report
    assert again.dataset[:] == first.dataset[:]
    assert again.dataset._fingerprint == first.dataset._fingerprint == first.report.fingerprint
    files = again.dataset.data.path
    assert Path(files).parent.parent == tmp_path / "cache" / "prepared"


@pytest.mark.parametrize("change", ["byte", "option", "template", "weight", "path", "tokenizer"])
def test_other_content_is_prepared_anew(change: str, source: Path, tmp_path: Path, makings: list[Path]) -> None:
    tokenizer, options = make_tokenizer(), DataOptions()
    given: dict[str, Any] = {"path": str(source)}
    sets(tmp_path).open([given], tokenizer, options)
    if change == "byte":
        content = source.read_bytes()
        source.write_bytes(content.replace(b" good ", b" Good ", 1))
    elif change == "option":
        options = DataOptions(max_length=20)
    elif change == "template":
        tokenizer.chat_template = "{{ messages }}"
    elif change == "weight":
        given = given | {"weight": 0.5}
    elif change == "path":
        given = {"path": str(write(tmp_path / "same.jsonl", make_rows(30)))}
    else:
        tokenizer.add_tokens(["good"])
    sets(tmp_path).open([given], tokenizer, options)
    assert len(makings) == 2
    sets(tmp_path).open([given], tokenizer, options)
    assert len(makings) == 2


def test_the_seed_counts_only_where_a_weight_picks_rows_by_it(
    source: Path, tmp_path: Path, tokenizer: Any, makings: list[Path]
) -> None:
    for weight, made in ((2, 1), (1.5, 3)):
        for seed in (0, 1):
            sets(tmp_path).open([{"path": str(source), "weight": weight}], tokenizer, DataOptions(), seed)
        assert len(makings) == made


def test_a_file_is_read_once_for_each_state_that_it_is_seen_in(
    source: Path, tmp_path: Path, tokenizer: Any, makings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old file's hash is remembered under its times; a file that changed just now is read again."""
    os.utime(source, (1e9, 1e9))
    sets(tmp_path).open(str(source), tokenizer, DataOptions())
    assert len(list((tmp_path / "cache" / "prepared" / ".files").iterdir())) == 1
    monkeypatch.setattr(hashlib, "file_digest", None)
    sets(tmp_path).open(str(source), tokenizer, DataOptions())
    assert len(makings) == 1
    os.utime(source)
    with pytest.raises(TypeError):
        sets(tmp_path).open(str(source), tokenizer, DataOptions())


def test_rejected_rows_are_written_although_nothing_is_read(
    tmp_path: Path, tokenizer: Any, makings: list[Path]
) -> None:
    source = write(tmp_path / "rows.jsonl", [*make_rows(3), {"prompt": "p", "chosen": "c"}])
    options = [DataOptions(on_bad_row="skip", rejected_rows=tmp_path / name / "bad.jsonl") for name in "ab"]
    reports = [sets(tmp_path).open(str(source), tokenizer, one).report for one in options]
    assert len(makings) == 1
    assert reports[0] == reports[1]
    for one in options:
        assert one.rejected_rows is not None
        line = json.loads(one.rejected_rows.read_text())
        assert (line["source"], line["reason"]) == (f"{source}:4", "rejected is missing")
    sound = str(write(tmp_path / "sound.jsonl", make_rows(3)))
    for one in options:  # prepared, then mapped: neither leaves what another set rejected
        assert one.rejected_rows is not None
        sets(tmp_path).open(sound, tokenizer, one)
        assert not one.rejected_rows.exists()


def test_bad_rows_leave_nothing_behind_and_are_told_again(tmp_path: Path, tokenizer: Any, makings: list[Path]) -> None:
    source = write(tmp_path / "rows.jsonl", [*make_rows(3), {"prompt": "p", "chosen": "c"}])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of 4 rows are bad:\n  .*rows.jsonl:4: rejected is missing"):
            sets(tmp_path).open(str(source), tokenizer, DataOptions())
    assert len(makings) == 2
    assert [path for path in (tmp_path / "cache" / "prepared").iterdir() if not path.name.startswith(".files")] == [
        tmp_path / "cache" / "prepared" / ".locks"
    ]


def test_a_changed_byte_a_missing_end_and_a_lost_file_are_noticed(
    source: Path, tmp_path: Path, tokenizer: Any, makings: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def flipped(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    first = sets(tmp_path).open(str(source), tokenizer, DataOptions())
    expected = first.dataset[:]
    damages = [
        (flipped, r"sha256 of the \d+ bytes of rows.arrow is"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), r"rows.arrow has \d+ bytes, expected \d+"),
        (lambda path: path.unlink(), "rows.arrow cannot be read: No such file or directory"),
    ]
    for number, (damage, message) in enumerate(damages, start=2):
        (entry,) = cache_info(tmp_path / "cache")
        folder = tmp_path / "cache" / "prepared" / entry.fingerprint
        damage(folder / "rows.arrow")
        (found,) = cache_verify(tmp_path / "cache")
        assert (found.path, found.fingerprint) == (folder, entry.fingerprint)
        caplog.clear()
        assert sets(tmp_path).open(str(source), tokenizer, DataOptions()).dataset[:] == expected
        assert f"Damaged prepared set {folder}: {found.reason}. It is prepared again." in caplog.text
        assert re.search(message, found.reason)
        assert len(makings) == number


def test_rot_under_an_unchanged_time_is_found_by_verify(source: Path, tmp_path: Path, tokenizer: Any) -> None:
    sets(tmp_path).open(str(source), tokenizer, DataOptions())
    (path,) = (tmp_path / "cache" / "prepared").glob("*/rows.arrow")
    state, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert [one.path for one in cache_verify(tmp_path / "cache", repair=True)] == [path.parent]
    assert cache_verify(tmp_path / "cache") == []
    assert cache_info(tmp_path / "cache") == []


def test_info_and_prune_know_prepared_sets(source: Path, tmp_path: Path, tokenizer: Any) -> None:
    dataset = sets(tmp_path).open(str(source), tokenizer, DataOptions()).dataset
    (entry,) = cache_info(tmp_path / "cache")
    assert (entry.model, entry.dtype, entry.entries) == (f"rows of {source}", "pairs", 30)
    assert entry.tokens == sum(len(row[f"{name}_ids"]) for row in dataset for name in ("prompt", "chosen", "rejected"))
    (tmp_path / "cache" / "prepared" / f".making-{entry.fingerprint}-01234567").mkdir()
    assert cache_prune(tmp_path / "cache", older_than_days=1) == []
    assert [path.name for path in (tmp_path / "cache" / "prepared").glob(".making*")] == []
    assert cache_prune(tmp_path / "cache", fingerprints=[entry.fingerprint[:6]], dry_run=True) == [entry]
    assert cache_prune(tmp_path / "cache", max_gb=0.0) == [entry]
    assert cache_info(tmp_path / "cache") == []
    assert len(dataset[:]["prompt_ids"]) == 30  # who has it mapped goes on reading


def test_too_small_a_disk_is_said_before_anything_is_prepared(
    source: Path, tmp_path: Path, tokenizer: Any, makings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"0.0 GB free, and preparing these rows may take 0.0 GB.*data_cache_dir"):
        sets(tmp_path).open(str(source), tokenizer, DataOptions())
    assert makings == []


def test_a_folder_that_cannot_be_written_is_said_and_rows_are_prepared_in_memory(
    source: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock that may not be taken, as root cannot be kept from writing by a folder's mode."""

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    found = sets(tmp_path).open(str(source), tokenizer, DataOptions())
    assert len(found.dataset) == 30
    assert found.dataset.cache_files == []
    assert "Permission denied" in caplog.text
    assert "every rank prepares rows in its own memory; data_cache_dir names a folder" in caplog.text


def test_few_rows_from_python_stay_in_memory(tmp_path: Path, tokenizer: Any) -> None:
    found = sets(tmp_path).open(make_rows(5), tokenizer, DataOptions())
    assert len(found.dataset) == 5
    assert not (tmp_path / "cache").exists()


def child(root: Path, source: Path, workers: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CHILD, str(SUPPORT), str(root / "cache"), str(source), str(workers)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_next_start_is_right(tmp_path: Path, tokenizer: Any) -> None:
    """Children fork off a ready process, prepare 6,000 rows and are killed on the way; whole sets alone are opened."""
    source = write(tmp_path / "rows.jsonl", make_rows(6000))
    options = DataOptions(kind="labelled", mismatched=True)
    began = time.monotonic()
    expected = sets(tmp_path / "whole").open(str(source), tokenizer, options).dataset
    whole, chance = time.monotonic() - began, random.Random(0)
    for _ in range(10):
        pid = os.fork()
        if not pid:
            os.setsid()
            sets(tmp_path, workers=2).open(str(source), tokenizer, options)
            os._exit(0)
        time.sleep(chance.uniform(0, whole))
        os.killpg(os.getpgid(pid), signal.SIGKILL)
        os.waitpid(pid, 0)
        made = [path.parent for path in (tmp_path / "cache").glob("prepared/[0-9a-f]*/manifest.json")]
        assert cache_verify(tmp_path / "cache") == []
        for folder in made:
            assert (folder / "rows.arrow").read_bytes() == Path(expected.data.path).read_bytes()
            cache_prune(tmp_path / "cache", fingerprints=[folder.name])
    found = sets(tmp_path).open(str(source), tokenizer, options).dataset
    assert Path(found.data.path).read_bytes() == Path(expected.data.path).read_bytes()
    assert list((tmp_path / "cache" / "prepared").glob(".making*")) == []


@pytest.mark.slow
def test_two_at_once_prepare_once_and_who_waited_is_told_of_bad_rows(tmp_path: Path) -> None:
    rows = make_rows(4000)
    source = write(tmp_path / "rows.jsonl", rows)
    both = [child(tmp_path, source, 1), child(tmp_path, source, 2)]
    for process in both:
        go(process)
    told = [process.communicate(timeout=200) for process in both]
    assert told[0][0] == told[1][0] != ""
    assert sum("waiting for it to finish" in errors for _, errors in told) == 1
    assert len(list((tmp_path / "cache" / "prepared").glob("[0-9a-f]*"))) == 1
    broken = write(tmp_path / "broken.jsonl", [*rows, {"prompt": "p"}])
    both = [child(tmp_path, broken, 1), child(tmp_path, broken, 1)]
    for process in both:
        go(process)
    for process in both:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 1
        assert f"{broken}:4001: " in errors


def test_a_folder_that_cannot_be_made_names_its_own_key(tmp_path: Path, source: Path, tokenizer: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match=r"cannot create the prepared rows folder: .*; choose another with data_cache_dir"
    ):
        PreparedSets(tmp_path / "file", progress=False).open(str(source), tokenizer, DataOptions())


def test_a_stream_is_written_once_with_the_place_of_every_row(
    tmp_path: Path, tokenizer: Any, makings: list[Path]
) -> None:
    rows = make_rows(2500)
    stream = IterableDataset.from_generator(rows.__iter__)
    found = sets(tmp_path).open(stream, tokenizer, DataOptions())
    assert found.dataset["source"][:] == [f"row {number}" for number in range(2500)]
    assert found.report.rows_read == 2500
    again = sets(tmp_path).open(IterableDataset.from_generator(rows.__iter__), tokenizer, DataOptions())
    assert len(makings) == 1
    assert again.dataset[:]["chosen_ids"] == found.dataset[:]["chosen_ids"]
    sets(tmp_path).open(stream.skip(1), tokenizer, DataOptions())
    assert len(makings) == 2


# ---- deleted meanwhile, or deleted by half ---------------------------------------------------------------------------


def test_a_prune_that_dies_anywhere_leaves_a_whole_set_or_none(
    source: Path, tmp_path: Path, tokenizer: Any, makings: list[Path]
) -> None:
    """Half of a deleted set was in the way of the next one: no start of any run could prepare these rows again."""
    for number in itertools.count():
        expected = sets(tmp_path).open(str(source), tokenizer, DataOptions()).report.fingerprint
        if not dies_at(number, lambda: cache_prune(tmp_path / "cache", max_gb=0)):
            break
        assert cache_verify(tmp_path / "cache") == []
        assert sets(tmp_path).open(str(source), tokenizer, DataOptions()).report.fingerprint == expected
    assert 5 < len(makings) < number  # the first deaths fall before the set is touched
    assert sets(tmp_path).open(str(source), tokenizer, DataOptions()).report.fingerprint == expected


@pytest.mark.parametrize("left", [".last_used", "rows.arrow", "report.json"])
def test_what_is_left_of_a_set_is_in_nobodys_way(left: str, source: Path, tmp_path: Path, tokenizer: Any) -> None:
    """Whoever opened a set that was being deleted wrote the time of its last use into the empty folder."""
    found = sets(tmp_path).open(str(source), tokenizer, DataOptions())
    for path in only_set(tmp_path).iterdir():
        if path.name != left:
            path.unlink()
    assert sets(tmp_path).open(str(source), tokenizer, DataOptions()).report == found.report
    cache_prune(tmp_path / "cache")
    assert list((tmp_path / "cache" / "prepared").glob(".damaged-*")) == []


def test_a_set_that_is_deleted_while_it_is_opened_is_made_again(
    source: Path, tmp_path: Path, tokenizer: Any, makings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sets(tmp_path).open(str(source), tokenizer, DataOptions()).report
    sound, pruned = manifest.damage_of, list[Any]()

    def damage_of(folder: Path) -> str:
        found = sound(folder)
        if not pruned:
            pruned.extend(cache_prune(tmp_path / "cache", max_gb=0))
        return found

    monkeypatch.setattr("alignlab.cache.prepared.damage_of", damage_of)
    assert sets(tmp_path).open(str(source), tokenizer, DataOptions()).report == expected
    assert len(pruned) == 1
    assert len(makings) == 2


def test_who_waits_and_who_lists_bear_with_files_that_go(
    source: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look into a folder and the next at its files, a writer renames them and a prune deletes them."""
    sets(tmp_path).open(str(source), tokenizer, DataOptions())
    with ScoreCache(tmp_path / "cache").open("aa11", {"model": "m"}).writing() as writer:
        writer.append([b"k" * 16], {COLUMN: [np.zeros(3, np.float32)]})
    making = tmp_path / "cache" / "prepared" / f".making-{'0' * 32}-12345678"
    making.mkdir()
    for folder in (making, tmp_path / "cache" / "aa11", only_set(tmp_path)):
        (folder / ".writing-ab.tmp").touch()
    is_file = Path.is_file

    def going(path: Path) -> bool:
        found = is_file(path)
        if path.name == ".writing-ab.tmp":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", going)
    assert {entry.fingerprint for entry in cache_info(tmp_path / "cache")} == {"aa11", only_set(tmp_path).name}
    assert sets(tmp_path)._pulse("0" * 32) == "nothing is written yet"


def only_set(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache" / "prepared").glob("[0-9a-f]*")
    return found
