"""The score cache gives back what was put in, bit for bit, and loses at most one shard to a crash or a bad disk."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.cache import shard
from alignlab.cache.admin import cache_info, cache_prune, cache_verify
from alignlab.cache.shard import shard_paths, temporary_paths
from alignlab.cache.store import ScoreCache, default_root

NAME = "f00d"


def key(number):
    return number.to_bytes(16, "little")


def scores(number):
    """Values that are a function of the key, of a length that is too (0 included)."""
    return np.random.default_rng(number).normal(size=number % 7).astype(np.float32)


def fill(root, numbers, shard_rows=4, name=NAME, **meta):
    store = ScoreCache(root).open(name, meta)
    with store.writing(shard_rows=shard_rows) as writer:
        for number in numbers:
            writer.append([key(number)], {"logps": [scores(number)]})
    return store


def assert_holds(store, numbers):
    found = store.get([key(number) for number in numbers])
    for number, values in zip(numbers, found, strict=True):
        assert values.tobytes() == scores(number).tobytes()


def run(script, *arguments):
    """Starts a python process that has this file's helpers."""
    prelude = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_store import *\n"
    command = [sys.executable, "-u", "-c", prelude + script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


def test_round_trip_is_bitwise_in_any_order_and_across_processes(tmp_path):
    store = fill(tmp_path, range(10))
    assert len(shard_paths(store.folder)) == 3  # 4 + 4 + 2 rows
    assert_holds(store, [3, 9, 0, 3])
    assert_holds(ScoreCache(tmp_path).open(NAME), range(10))


def test_special_values_survive(tmp_path):
    values = np.array([-0.0, 1e-45, 3.4028235e38, -17.25], dtype=np.float32)
    store = ScoreCache(tmp_path).open(NAME)
    with store.writing() as writer:
        writer.append([key(1)], {"logps": [values]})
    assert store.get([key(1)])[0].tobytes() == values.tobytes()


def test_several_columns_and_dtypes(tmp_path):
    """Rewards come later than log-probabilities; hidden states are [n, d] in half precision."""
    hidden = {dtype: torch.randn(3, 5).to(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    store = ScoreCache(tmp_path).open(NAME)
    with store.writing() as writer:
        for number, states in enumerate(hidden.values()):
            writer.append([key(number)], {"logps": [scores(number)], "hidden": [states]})
        writer.append([key(0)], {"rewards": [np.ones(1, np.float32)]})
    assert_holds(store, range(3))
    for number, states in enumerate(hidden.values()):
        found = store.get([key(number)], "hidden")[0]
        assert found.dtype == (np.float16 if states.dtype == torch.float16 else np.float32)
        assert torch.equal(torch.from_numpy(found.copy()), states if found.dtype == np.float16 else states.float())
    assert store.missing([key(0), key(1)], "rewards") == [1]
    assert store.missing([key(0)], "kl") == [0]


def test_values_are_read_only_views_and_the_writer_copies(tmp_path):
    buffer = torch.ones(3)
    store = ScoreCache(tmp_path).open(NAME)
    with store.writing() as writer:
        writer.append([key(1)], {"logps": [buffer]})
        buffer.zero_()
    found = store.get([key(1)])[0]
    assert found.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 2


def test_missing_names_each_distinct_key_once(tmp_path):
    store = fill(tmp_path, [1, 2])
    assert store.missing([key(n) for n in (5, 1, 3, 5, 2, 3)]) == [0, 2]
    assert store.missing(np.frombuffer(key(5) + key(1), np.uint8).reshape(2, 16)) == [0]
    assert store.missing(np.frombuffer(key(5) + key(1), "S16")) == [0]
    assert store.holds([key(5), key(1)]).tolist() == [False, True]
    assert store.missing([]) == []
    assert store.get([]) == []


def test_the_first_of_two_values_wins(tmp_path):
    store = ScoreCache(tmp_path).open(NAME)
    for value in (1.0, 2.0):
        with store.writing() as writer:
            writer.append([key(1)], {"logps": [np.full(2, value, np.float32)]})
    for opened in (store, ScoreCache(tmp_path).open(NAME)):
        assert opened.get([key(1)])[0].tolist() == [1, 1]


def test_get_of_absent_keys_says_how_many(tmp_path):
    with pytest.raises(KeyError, match=r"2 of 3 keys have no 'logps' in .*, the first at position 1"):
        fill(tmp_path, [1]).get([key(1), key(2), key(3)])


def test_nothing_is_created_before_something_is_written(tmp_path):
    store = ScoreCache(tmp_path / "cache").open(NAME)
    assert store.missing([key(1)]) == [0]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        (
            [key(1), key(2), key(3)],
            [[1.0], [float("nan"), 0.0], [-float("inf")]],
            "2 of 3 rows .* NaN or infinite.*at position 1",
        ),
        ([key(1)], [[1.0], [2.0]], "'logps' has 2 rows for 1 keys"),
        ([b"short"], [[1.0]], "a key must be 16 bytes, found 5"),
        ([key(1)], [[[[1.0]]]], r"must be \[n\] or \[n, d\] .* found torch.float32 \[1, 1, 1\]"),
        ([key(1), key(2)], [[1.0], [[1.0]]], "differ in dtype or width"),
    ],
)
def test_bad_scores_are_refused_and_not_written(tmp_path, keys, values, message):
    store = ScoreCache(tmp_path).open(NAME)
    rows = [np.array(row, dtype=np.float32) for row in values]
    with store.writing() as writer:
        writer.append([key(7)], {"logps": [scores(7)]})
        with pytest.raises(ValueError, match=message):
            writer.append(keys, {"logps": rows})
    assert len(store) == 1  # the good row that came before


def test_float64_and_bad_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"of float32, float16, bfloat16; found torch.float64 \[2\]"):
        ScoreCache(tmp_path).open(NAME).writer().append([key(1)], {"logps": [np.zeros(2)]})
    with pytest.raises(ValueError, match="cannot name a folder"):
        ScoreCache(tmp_path).open("../elsewhere")


rows = st.dictionaries(st.integers(0, 40).map(lambda n: n << 120 | n % 2), st.integers(0, 5), max_size=12)


@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(rows, max_size=4), shard_rows=st.integers(1, 6), asked=st.lists(st.integers(0, 40), max_size=10)
)
def test_store_agrees_with_a_dictionary(batches, shard_rows, asked):
    """Keys that differ in their last byte only, or end in zero bytes, are told apart."""
    known: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as root:
        store = ScoreCache(root).open(NAME)
        for batch in batches:
            with store.writing(shard_rows=shard_rows) as writer:
                for number, length in batch.items():
                    writer.append([key(number)], {"logps": [np.full(length, number % 1000, np.float32)]})
            known = {**batch, **known}
        for opened in (store, ScoreCache(root).open(NAME)):
            keys = [number << 120 | number % 2 for number in asked]
            absent = list(dict.fromkeys(number for number in keys if number not in known))
            assert opened.missing([key(number) for number in keys]) == [keys.index(number) for number in absent]
            present = [number for number in keys if number in known]
            for number, values in zip(present, opened.get([key(n) for n in present]), strict=True):
                assert values.tolist() == [number % 1000] * known[number]


def test_scores_before_an_error_are_kept(tmp_path):
    store = ScoreCache(tmp_path).open(NAME)

    def interrupted():
        with store.writing() as writer:
            writer.append([key(1)], {"logps": [scores(1)]})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_holds(ScoreCache(tmp_path).open(NAME), [1])
    with store.writing():
        pass  # the lock was given back


class TestDamage:
    def test_a_flip_of_any_byte_is_named_and_its_rows_are_missing(self, tmp_path, caplog):
        store = fill(tmp_path, [1, 2], shard_rows=2)
        path = shard_paths(store.folder)[0]
        content = path.read_bytes()
        for position in range(len(content)):
            path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
            caplog.clear()
            assert ScoreCache(tmp_path).open(NAME).missing([key(1), key(2)]) == [0, 1]
            assert path.name in caplog.text
            path.with_name(path.name + ".damaged").unlink()  # it has been set aside

    def test_what_is_as_it_was_written_is_not_read_to_be_opened(self, tmp_path, monkeypatch):
        """Checksums are held against files that were changed, copied or restored, once; else the index is read."""
        read = []
        store, check = fill(tmp_path, range(8)), shard.verify_shard
        monkeypatch.setattr(shard, "verify_shard", lambda path: (read.append(path), check(path)))
        assert_holds(ScoreCache(tmp_path).open(NAME), range(8))
        assert read == []
        copied = shard_paths(store.folder)[1]
        os.utime(copied)
        assert_holds(ScoreCache(tmp_path).open(NAME), range(8))
        assert read == [copied]
        assert_holds(ScoreCache(tmp_path).open(NAME), range(8))
        assert read == [copied]
        ScoreCache(tmp_path).open(NAME, verify=True)
        assert sorted(read[1:]) == shard_paths(store.folder)

    def test_only_the_damaged_shard_is_scored_again(self, tmp_path):
        store = fill(tmp_path, range(10))
        damaged = shard_paths(store.folder)[1]
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
        again = ScoreCache(tmp_path).open(NAME)
        assert again.missing([key(n) for n in range(10)]) == [4, 5, 6, 7]
        fill(tmp_path, [4, 5, 6, 7])
        assert_holds(ScoreCache(tmp_path).open(NAME), range(10))

    @pytest.mark.parametrize("length", [0, 7, 100, -1])
    def test_truncated(self, tmp_path, length, caplog):
        store = fill(tmp_path, range(4))
        path = shard_paths(store.folder)[0]
        path.write_bytes(path.read_bytes()[:length])
        assert len(ScoreCache(tmp_path).open(NAME).missing([key(n) for n in range(4)])) == 4
        assert f"Damaged score shard {path}" in caplog.text

    def test_half_written_files_are_ignored_and_cleaned_by_the_next_writer(self, tmp_path):
        store = fill(tmp_path, range(4))
        half = store.folder / ".writing-0123abcd.tmp"
        half.write_bytes(shard_paths(store.folder)[0].read_bytes()[:50])
        again = ScoreCache(tmp_path).open(NAME)
        assert_holds(again, range(4))
        assert half.exists()
        with again.writing():
            assert not half.exists()

    def test_a_newer_format_is_left_alone(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr("alignlab.cache.shard.FORMAT", "alignlab-scores-2")
        store = fill(tmp_path, [1])
        monkeypatch.undo()
        assert ScoreCache(tmp_path).open(NAME).missing([key(1)]) == [0]
        assert "format 'alignlab-scores-2', this version of alignlab reads 'alignlab-scores-1'" in caplog.text
        assert len(shard_paths(store.folder)) == 1

    def test_verify_reports_and_repairs(self, tmp_path):
        store = fill(tmp_path, range(8))
        bad = shard_paths(store.folder)[1]
        bad.write_bytes(bad.read_bytes()[:-3])
        assert [(damage.path, damage.fingerprint) for damage in cache_verify(tmp_path)] == [(bad, NAME)]
        assert bad.exists()
        assert "sha256" in cache_verify(tmp_path, repair=True)[0].reason
        assert not bad.exists()
        assert cache_verify(tmp_path) == []


class TestProcesses:
    def test_kill_in_the_middle_loses_at_most_one_shard(self, tmp_path):
        child = run(
            "store = ScoreCache(sys.argv[1]).open(NAME)\n"
            "with store.writing(shard_rows=5) as writer:\n"
            "    for number in range(100000):\n"
            "        writer.append([key(number)], {'logps': [scores(number)]}); print(number)\n",
            tmp_path,
        )
        for line in child.stdout:
            if int(line) == 33:
                break
        os.kill(child.pid, signal.SIGKILL)
        scored = [33, *map(int, child.stdout.read().split())][-1] + 1
        child.communicate()
        store = ScoreCache(tmp_path).open(NAME)
        redone = store.missing([key(number) for number in range(scored)])
        assert len(redone) <= 5
        assert redone == list(range(scored - len(redone), scored))
        fill(tmp_path, redone)  # the lock of the dead process is free
        assert_holds(ScoreCache(tmp_path).open(NAME), range(scored))

    @pytest.mark.slow
    def test_one_scores_and_the_other_waits_and_reads(self, tmp_path):
        script = (
            "logging.basicConfig()\n"
            "store = ScoreCache(sys.argv[1]).open(NAME, {'model': 'tiny'})\n"
            "with store.writing(shard_rows=3) as writer:\n"
            "    todo = store.missing([key(number) for number in range(10)])\n"
            "    print(len(todo))\n"
            "    sys.stdin.readline()\n"
            "    for number in todo: writer.append([key(number)], {'logps': [scores(number)]})\n"
            "assert_holds(store, range(10))\n"
        )
        first = run(script, tmp_path)
        assert first.stdout.readline() == "10\n"
        second = run(script, tmp_path)
        assert "Another process is scoring with tiny; waiting" in second.stderr.readline()
        assert first.communicate("\n")[1] == ""
        out, errors = second.communicate("\n")
        assert (out, errors) == ("0\n", "")
        assert (first.returncode, second.returncode) == (0, 0)

    def test_ranks_write_at_once_under_the_lock_of_rank_zero(self, tmp_path):
        script = (
            "store, rank = ScoreCache(sys.argv[1]).open(NAME), int(sys.argv[2])\n"
            "print('ready'); sys.stdin.readline()\n"
            "with store.writer(rank=rank, shard_rows=2) as writer:\n"
            "    for number in range(rank, 40, 2): writer.append([key(number)], {'logps': [scores(number)]})\n"
        )
        store = ScoreCache(tmp_path).open(NAME)
        with store.lock():
            ranks = [run(script, tmp_path, rank) for rank in range(2)]
            for rank in ranks:
                assert rank.stdout.readline() == "ready\n"
            for rank in ranks:
                rank.stdin.write("\n")
                rank.stdin.flush()
            for rank in ranks:
                assert rank.communicate()[1] == ""
            store.refresh()
        assert len(shard_paths(store.folder)) == 20
        assert_holds(store, range(40))

    def test_full_disk_is_an_error_that_says_so_and_leaves_nothing_half_written(self, tmp_path):
        """A limit on the size of files stands in for the disk: the write fails in the same place."""
        child = run(
            "import resource\n"
            "fill(sys.argv[1], [1, 2])\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "store = ScoreCache(sys.argv[1]).open(NAME)\n"
            "with store.writing() as writer:\n"
            "    writer.append([key(3)], {'logps': [np.ones(5000, np.float32)]})\n",
            tmp_path,
        )
        errors = child.communicate()[1]
        assert child.returncode == 1
        assert "cannot write 0.0 MB of scores: File too large; make room there" in errors
        store = ScoreCache(tmp_path).open(NAME)
        assert temporary_paths(store.folder) == []
        assert store.missing([key(1), key(2), key(3)]) == [2]

    def test_read_only_cache_reads_and_says_that_it_cannot_write(self):
        with tempfile.TemporaryDirectory() as root:
            Path(root).chmod(0o755)
            store = fill(root, [1, 2])
            damaged = shard_paths(fill(root, [3]).folder)[1]
            damaged.write_bytes(damaged.read_bytes()[:-1])
            for folder in (Path(root), store.folder, Path(root) / ".locks"):
                folder.chmod(0o555)
            child = run(
                "os.geteuid() or os.seteuid(65534)\n"  # root may write anywhere
                "store = ScoreCache(sys.argv[1]).open(NAME)\n"
                "assert_holds(store, [1, 2])\n"
                "print(store.missing([key(1), key(2), key(3)]))\n"
                "store.refresh()\n"
                "try:\n"
                "    with store.writing(): pass\n"
                "except OSError as error: print(error)\n"
                "with store.writer() as writer: writer.append([key(4)], {'logps': [scores(4)]})\n",
                root,
            )
            out, errors = child.communicate()
            for folder in (Path(root), store.folder, Path(root) / ".locks"):
                folder.chmod(0o755)
        missing, refusal = out.splitlines()
        assert missing == "[2]"
        assert "cannot lock the score cache: Permission denied; choose another folder with score" in refusal
        assert errors.count("Damaged score shard") == 1
        assert "cannot write 0.0 MB of scores: Permission denied" in errors.splitlines()[-1]

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        store = ScoreCache(tmp_path / "file" / "cache").open(NAME)
        with pytest.raises(OSError, match="cannot create the score cache folder: Not a directory"), store.writing():
            pass


class TestAdmin:
    def at(self, root, name, days_ago):
        when = (root / name / ".last_used").stat().st_mtime - days_ago * 86400
        os.utime(root / name / ".last_used", (when, when))

    def three(self, root):
        for days, name in enumerate(("aa11", "aa22", "bb33")):
            fill(root, range(5), name=name, model=f"model-{name}", dtype="bfloat16")
            self.at(root, name, 10 * days)

    def test_info(self, tmp_path):
        self.three(tmp_path)
        fill(tmp_path, [0, 1], name="aa11")  # rows it has already
        (tmp_path / "notes").mkdir()
        entry, *others = cache_info(tmp_path)
        assert (entry.fingerprint, entry.model, entry.dtype) == ("aa11", "model-aa11", "bfloat16")
        assert (entry.entries, entry.tokens, entry.shards) == (5, 0 + 1 + 2 + 3 + 4 + 0 + 1, 3)
        size = sum(file.stat().st_size for file in (tmp_path / "aa11").iterdir())
        assert entry.megabytes == size / 1e6
        assert [other.fingerprint for other in others] == ["aa22", "bb33"]
        assert (entry.last_used - others[1].last_used).days in (19, 20)
        assert cache_info(tmp_path / "nowhere") == []

    def test_opening_counts_as_use(self, tmp_path):
        self.three(tmp_path)
        ScoreCache(tmp_path).open("bb33")
        assert cache_info(tmp_path)[0].fingerprint == "bb33"

    def test_meta_is_for_people_and_keeps_what_it_knows(self, tmp_path):
        fill(tmp_path, [1], model="first", dtype="float32")
        meta = json.loads((tmp_path / NAME / "meta.json").read_text())
        assert (meta["model"], meta["columns"], meta["fingerprint"]) == ("first", {"logps": "float32"}, NAME)
        (tmp_path / NAME / "meta.json").write_text("not json")
        store = fill(tmp_path, [2], model="first")
        assert json.loads((tmp_path / NAME / "meta.json").read_text())["model"] == "first"
        assert_holds(store, [1, 2])

    @pytest.mark.parametrize(
        ("options", "gone"),
        [
            ({"older_than_days": 15}, ["bb33"]),
            ({"older_than_days": 5}, ["aa22", "bb33"]),
            ({"fingerprints": ["bb", "aa11"]}, ["aa11", "bb33"]),
            ({"max_gb": 0}, ["aa11", "aa22", "bb33"]),
            ({"max_gb": 1}, []),
            ({}, []),
        ],
    )
    def test_prune(self, tmp_path, options, gone):
        self.three(tmp_path)
        assert [entry.fingerprint for entry in cache_prune(tmp_path, **options, dry_run=True)] == gone
        assert len(cache_info(tmp_path)) == 3
        assert [entry.fingerprint for entry in cache_prune(tmp_path, **options)] == gone
        left = {"aa11", "aa22", "bb33"} - set(gone)
        assert {path.name for path in tmp_path.iterdir()} - {".locks"} == left

    def test_prune_to_a_size_deletes_the_least_recently_used(self, tmp_path):
        self.three(tmp_path)
        sizes = [entry.megabytes for entry in cache_info(tmp_path)]
        assert [e.fingerprint for e in cache_prune(tmp_path, max_gb=(sizes[0] + sizes[1]) / 1000)] == ["bb33"]

    def test_prune_cleans_leftovers_and_touches_nothing_else(self, tmp_path):
        self.three(tmp_path)
        bad = shard_paths(tmp_path / "aa11")[0]
        bad.write_bytes(b"")
        cache_verify(tmp_path, repair=True)
        half, mine = tmp_path / "aa11" / ".writing-ab.tmp", tmp_path / "aa22" / "mine.txt"
        half.touch()
        mine.touch()
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "meta.json").write_text("{}")
        cache_prune(tmp_path, fingerprints=["aa22"])
        assert not half.exists()
        assert not list((tmp_path / "aa11").glob("*.damaged"))
        assert list((tmp_path / "aa22").iterdir()) == [mine]
        assert (tmp_path / "notes" / "meta.json").exists()

    def test_prune_leaves_a_store_that_is_being_written(self, tmp_path, caplog):
        self.three(tmp_path)
        with ScoreCache(tmp_path).open("bb33").lock():
            assert [e.fingerprint for e in cache_prune(tmp_path, max_gb=0)] == ["aa11", "aa22"]
        assert "bb33 is being written and is left alone" in caplog.text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"fingerprints": ["aa"]}, "'aa' names 2 stores, it must name one of: aa11, aa22, bb33"),
            ({"fingerprints": ["cc"]}, "'cc' names 0 stores"),
            ({"fingerprints": [""]}, "'' names 0 stores"),
            ({"max_gb": -1}, "max_gb must not be negative, found -1"),
        ],
    )
    def test_prune_refuses_what_it_cannot_mean(self, tmp_path, options, message):
        self.three(tmp_path)
        with pytest.raises(ValueError, match=message):
            cache_prune(tmp_path, **options)
        assert len(cache_info(tmp_path)) == 3


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ALIGNLAB_CACHE", raising=False)
    assert default_root() == tmp_path / ".cache" / "alignlab" / "scores"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_root() == Path("/xdg/alignlab/scores")
    monkeypatch.setenv("ALIGNLAB_CACHE", "~/mine")
    assert default_root() == tmp_path / "mine"


def test_the_log_says_nothing_when_all_is_well(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        fill(tmp_path, range(4))
        ScoreCache(tmp_path).open(NAME)
    assert caplog.records == []
