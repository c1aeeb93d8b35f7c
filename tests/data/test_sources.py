"""Every kind of file gives the same rows, each with the place it came from."""

import gzip
import json
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet
import pytest

from alignlab.data import DataOptions, prepare, prepared_key
from alignlab.data.schema import Broken
from alignlab.data.sources import Source, open_sources

ROWS = [{"prompt": f"p{i}", "chosen": f"c {i}", "rejected": f"r {i}", "margin": i / 2} for i in range(3)]


def read(source):
    return [item for opened in open_sources(source) for item in opened.read()]


def write_as(kind, path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = pa.Table.from_pylist(ROWS)
    if kind == "jsonl":
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "csv":
        path.write_text(
            "prompt,chosen,rejected,margin\n" + "".join(",".join(map(str, row.values())) + "\n" for row in ROWS)
        )
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    elif kind == "stream.arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)


FIRST_LINE = {"csv": 2}  # the line of column names comes first


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "arrow", "stream.arrow"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    write_as(kind, path)
    first = FIRST_LINE.get(kind, 1)
    assert read(path) == [(f"{path}:{first + i}", row) for i, row in enumerate(ROWS)]


def test_json_file_with_jsonl_content(tmp_path):
    path = tmp_path / "rows.json"
    write_as("jsonl", path)
    assert [row for _, row in read(path)] == ROWS


def test_python_rows_datasets_and_generators():
    expected = [(f"row {i}", row) for i, row in enumerate(ROWS)]
    assert read(ROWS) == read(row for row in ROWS) == read(datasets.Dataset.from_list(ROWS)) == expected


def test_a_generator_can_be_read_twice():
    (source,) = open_sources(row for row in ROWS)
    assert list(source.read()) == list(source.read()) != []


def test_folder_reads_its_files_in_order_of_name(tmp_path):
    write_as("jsonl", tmp_path / "b.jsonl")
    write_as("csv", tmp_path / "a.csv")
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("{")
    places = [place for place, _ in read(tmp_path)]
    assert places == [f"{tmp_path}/a.csv:{i}" for i in (2, 3, 4)] + [f"{tmp_path}/b.jsonl:{i}" for i in (1, 2, 3)]


def test_folder_without_data_is_an_error(tmp_path):
    (tmp_path / "README.md").write_text("not data")
    with pytest.raises(ValueError, match="holds no data file"):
        read(tmp_path)


def test_saved_dataset(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    assert [row for _, row in read(tmp_path / "saved")] == ROWS
    with pytest.raises(ValueError, match="no split 'test'; found train"):
        read({"path": tmp_path / "saved", "split": "test"})


def test_broken_lines_are_named_with_their_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n{"a": "\xff"}\n[1]\n')
    places = {place.rsplit(":", 1)[1]: row for place, row in read(path)}
    assert places["1"] == {"a": 1}  # the byte order mark is no part of the row
    assert "2" not in places  # a blank line is no row
    assert isinstance(places["3"], Broken)
    assert places["3"].reason.startswith("broken JSON: Expecting value")
    assert places["4"].reason == "not UTF-8 (byte 7 of the line)"
    assert places["4"].raw == '{"a": "\\xff"}'
    assert places["5"].reason == "a row must be an object with named fields, found list"


def test_csv_with_quoted_lines_messages_and_bad_bytes(tmp_path):
    path = tmp_path / "rows.csv"
    turns = json.dumps([{"role": "user", "content": "hi"}]).replace('"', '""')
    path.write_bytes(
        b'prompt,label,weight\n"two\nlines",True,\n"' + turns.encode() + b'",0,0.5\n"\xff",1,1\nx,1,1,surplus\n'
    )
    rows = dict(read(path))
    assert rows[f"{path}:2"] == {"prompt": "two\nlines", "label": True}
    assert rows[f"{path}:4"] == {"prompt": [{"role": "user", "content": "hi"}], "label": 0, "weight": 0.5}
    assert rows[f"{path}:5"].reason == "not UTF-8 (in prompt)"
    assert rows[f"{path}:6"].reason == "1 more fields than there are column names"


def test_columns_are_renamed_even_when_swapped(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_as("jsonl", path)
    entry = {"path": path, "columns": {"chosen": "rejected", "rejected": "chosen", "score_chosen": "margin"}}
    assert read([entry])[1][1] == {"prompt": "p1", "chosen": "r 1", "rejected": "c 1", "score_chosen": 0.5}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", "missing.jsonl: no such file or folder"),
        ("someone/no-such-set", r"no such file or folder, and it could not be loaded as a hub data set"),
        ([], "the list of data sources is empty"),
        (7, "a data source is a path"),
        ({"path": "x", "wieght": 2}, "unknown key 'wieght' of a data source.*did you mean weight"),
        ({"weight": 2}, "a data source needs a path"),
        ({"path": "x", "weight": 0}, "x: weight must be a number above 0, found 0"),
        ({"path": "x", "weight": float("nan")}, "weight must be a number above 0, found nan"),
    ],
)
def test_what_cannot_be_a_source(source, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        read(source)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet", "rows.arrow", "rows.json", "rows.txt"])
def test_damaged_and_unknown_files_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"neither this nor that")
    with pytest.raises(ValueError, match=f"{name}: "):
        read(tmp_path / name)


def test_cut_off_gzip_is_named(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() * 100)[:-9])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: cannot be read"):
        read(path)


def test_source_names_itself():
    assert str(Source("a/b")) == "a/b"
    assert str(Source(rows=[])) == "rows"


def test_a_key_that_stands_twice_makes_a_bad_row(tmp_path, tokenizer):
    """The last would win: of a row itself, and of anything within it; in a list of rows the others stay."""
    row = '{"prompt": "p", "chosen": "a", "rejected": "b"%s}'
    lines = [row % "", row % ', "chosen": "c"', row % ', "x": {"y": 1, "y": 2}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "rows.json").write_text(f"[{', '.join(lines)}]")
    for name in ("rows.jsonl", "rows.json"):
        report = prepare(tmp_path / name, tokenizer, DataOptions(on_bad_row="skip"), progress=False).report
        assert report.rows_kept == 1
        assert [(bad.source, bad.reason) for bad in report.bad_rows] == [
            (f"{tmp_path / name}:2", "the key 'chosen' stands twice in one object"),
            (f"{tmp_path / name}:3", "the key 'y' stands twice in one object"),
        ]


def test_a_csv_file_with_a_column_twice_is_refused(tmp_path, tokenizer):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,chosen\np,a,b,c\n")
    with pytest.raises(ValueError, match=r"rows\.csv: the csv file has the column 'chosen' more than once"):
        prepare(tmp_path / "rows.csv", tokenizer, progress=False)


# ---- streams of the hub, which a folder stands for -------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one set, ``nobody/rows``; returns its revisions, the last of which it is at, and what was asked."""
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [{"prompt": f"ask {number}", "chosen": "good", "rejected": "bad"} for number in range(30)]
    for split in ("train", "test"):
        lines = [json.dumps({**row, "prompt": f"{split} {row['prompt']}"}) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    load, told = datasets.load_dataset, SimpleNamespace(revisions=["a1"], asked=[])

    def load_dataset(path, **kwargs):
        told.asked.append((path, kwargs))
        return load(str(folder), **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    info = lambda _, path: SimpleNamespace(sha=told.revisions[-1])  # noqa: E731
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    return told


def test_a_hub_stream_is_read_row_by_row_with_the_place_of_each(tokenizer, hub):
    source = {"path": "nobody/rows", "split": "test", "streaming": True}
    found = prepare([source], tokenizer, progress=False)
    assert hub.asked == [("nobody/rows", {"name": None, "split": "test", "streaming": True})]
    assert found.dataset["source"][:] == [f"nobody/rows:{number}" for number in range(1, 31)]
    assert tokenizer.decode(found.dataset[29]["prompt_ids"]) == "test ask 29"
    whole = prepare([{**source, "streaming": False}], tokenizer, progress=False)
    assert found.dataset[:] == whole.dataset[:]


def test_a_hub_stream_is_known_by_its_revision_and_not_gone_through(tokenizer, hub, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.IterableDataset, "__iter__", lambda self: pytest.fail("it was gone through"))

    def key(**more):
        sources = open_sources([{"path": "nobody/rows", "streaming": True, **more}])
        return prepared_key(sources, tokenizer, DataOptions(), 0, tmp_path)

    first = key()
    assert first == key()
    assert first != key(split="test")
    hub.revisions.append("b2")
    assert first != key()


def test_a_hub_that_cannot_be_asked_for_its_revision_is_named(tokenizer, hub, monkeypatch, tmp_path):
    def unreachable(*_):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(ValueError, match=r"nobody/rows: the hub does not say its revision \(ConnectionError\)"):
        prepared_key(open_sources({"path": "nobody/rows", "streaming": True}), tokenizer, DataOptions(), 0, tmp_path)
