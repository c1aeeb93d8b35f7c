"""No input ends in a traceback: a hundred hostile files, half a hundred configs, and what a fuzzer makes of them."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import make_rows

from alignlab.cli import main
from alignlab.config import load_config
from alignlab.data import DataOptions, prepare

GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}
SHOWN = "ALIGNLAB_DEBUG=1 shows the traceback"  # of errors that nobody foresaw
FEW = settings(derandomize=True, max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

# Values that a field of a row, or a key of a config, is never meant to have.
VALUES: list[Any] = [None, True, 0, -1, 1e400, float("nan"), "", " ", "\x00", "\ud83d", "\u202e\x1b[2J", [], {}, [[]]]
VALUES += [[None], [{}], [{"role": "x"}], {"a": {"b": []}}, 10**30, -1e-320, "a" * 10_000, [1, "a", None], [[["a"]]]]
MESSAGES: list[Any] = [
    [{"role": "user"}],
    [{"content": "x"}],
    [{"role": 1, "content": 2}],
    [{"role": "user", "content": []}],
]
MESSAGES += [
    [{"role": "assistant", "content": None, "tool_calls": "x"}],
    [{"role": "tool", "content": {"a": 1}}],
    ["x"],
]
BYTES = [b"", b"\x00" * 50, b"\xff\xfe{\x00", b"{", b"[", b"[[[[", b'{"a":' * 3000, b"[" * 100_000, b"\n\n\n", b"null"]
BYTES += [b"1", b'"x"', b"[]", b"{}", b"[null]", b"[1, 2]", b'{"prompt": 1e999}', b"\xef\xbb\xbf", b"\xef\xbb\xbf{}"]
BYTES += [b"prompt,chosen\r\n", b'prompt,chosen,rejected\n"a', b",,,\n,,,\n", b"prompt,prompt\na,b\n", b"a\tb\n1\t2\n"]
BYTES += [
    b"PAR1" + b"\x00" * 40 + b"PAR1",
    b"ARROW1" + b"\x00" * 40,
    b"\x1f\x8b\x08\x00",
    b"\x80\x04\x95",
    b"PK\x03\x04",
]
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".jsonl.gz", ".csv.gz", ".txt", "")


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Yields name and content: fields with wrong values, broken conversations, damaged and foreign bytes."""
    for name in ("prompt", "chosen", "rejected", "group", "weight", "margin", "label"):
        rows = [GOOD | {name: value} for value in VALUES]
        yield f"{name}.jsonl", "\n".join(map(json.dumps, rows)).encode()
    for index, turns in enumerate(MESSAGES):
        yield f"turns{index}.jsonl", json.dumps({"prompt": turns, "chosen": turns, "rejected": turns}).encode()
        yield f"chat{index}.jsonl", json.dumps({"messages": turns, "label": True}).encode()
        yield f"share{index}.json", json.dumps([{"conversations": turns, "chosen": {}, "rejected": turns}]).encode()
    for index, content in enumerate(BYTES):
        for suffix in (SUFFIXES[index % len(SUFFIXES)], SUFFIXES[(index + 4) % len(SUFFIXES)]):
            yield f"bytes{index}{suffix}", content
    whole = "".join(json.dumps(row) + "\n" for row in make_rows(20)).encode()
    rng = random.Random(13)
    for index in range(20):
        damaged = bytearray(whole if index % 2 else gzip.compress(whole, mtime=0))
        for _ in range(rng.randint(1, 20)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        yield f"damaged{index}.jsonl" + ("" if index % 2 else ".gz"), bytes(damaged[: rng.randrange(len(damaged))])


def hostile_configs() -> Iterator[dict[str, Any]]:
    """Yields the keys that make a good config a bad or a strange one."""
    values: list[Any] = ["x\x1b[2J", -1, [], 1e400, {"a": None}]
    blocks: list[Any] = [{"name": "\x00"}, {"name_or_path": "\x00", "train": ["\x00"]}, [], "x"]
    for key in ("max_steps", "learning_rate", "lr_scheduler_type", "optim", "report_to", "deepspeed", "seed", "fsdp"):
        for value in values:
            yield {key: value}
    for block in ("loss", "model", "data", "peft", "scorers", "eval_judge"):
        for value in blocks:
            yield {block: value}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_path: Path) -> Path:
    """A working directory with rows and a config."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(4)), encoding="utf-8")
    return tmp_path


def ends(capsys: Any, *words: str) -> int:
    """Returns the status of a command that ends without an unforeseen error, and steers no terminal."""
    try:
        status = main(list(words))
    except SystemExit as end:  # argparse
        status = int(str(end.code))
    out, err = capsys.readouterr()
    assert SHOWN not in err, (words, err[-600:])
    assert "Traceback" not in err
    assert "\x1b" not in out + err
    assert status in (0, 1, 2)
    return status


def test_a_hundred_hostile_files(here: Path, capsys: Any) -> None:
    files = list(hostile_files())
    assert len(files) >= 100
    for name, content in files:
        Path(name).write_bytes(content)
        ends(capsys, "data", "check", name)
        ends(capsys, "data", "show", name)


@pytest.mark.slow
def test_half_a_hundred_hostile_configs(here: Path, capsys: Any, model_path: Path) -> None:
    """Each against train, score or plan, in turn; where one is good after all, a step is trained."""
    configs = list(hostile_configs())
    assert len(configs) >= 50
    good: dict[str, Any] = {
        "loss": {"name": "dpo"},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": "rows.jsonl"},
    }
    good |= {"max_steps": 1, "report": False, "save_strategy": "no", "overwrite_output_dir": True, "max_length": 32}
    for index, changes in enumerate(configs):
        Path("run.yaml").write_text(json.dumps(good | changes), encoding="utf-8")
        ends(capsys, ("train", "score", "plan")[index % 3], "run.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "none", "--data", "rows.jsonl"],
        ["eval", "rows.jsonl", "--data", "rows.jsonl"],
        ["eval", "", "--data", ""],
        ["eval", "MODEL", "--data", "none.jsonl"],
        ["eval", "MODEL", "--data", "rows.jsonl", "--reference", "\x00"],
        ["eval", "MODEL", "--data", "rows.jsonl", "--beta", "nan"],
        ["eval", "MODEL", "--data", "rows.jsonl", "--max_length", "-3"],
        ["eval", "MODEL", "--data", "rows.jsonl", "--generate", "1", "--judge", "{name: [}"],
        ["eval", "MODEL", "--data", "rows.jsonl", "--generate", "1", "--judge", "{}"],
        ["eval", "MODEL", "--data", "rows.jsonl", "--output", "none/x.json"],
        ["report", "rows.jsonl"],
        ["report", "none"],
        ["sweep", "rows.jsonl"],
        ["losses", "check", "rows.jsonl:x"],
        ["losses", "\x00"],
        ["cache", "info", "--dir", "rows.jsonl"],
        ["plan", "dpo", "--gpus", "0"],
        ["plan", "dpo", "--gpu-memory", "-1"],
    ],
    ids=" ".join,
)
def test_words_that_make_no_sense(here: Path, capsys: Any, model_path: Path, words: list[str]) -> None:
    assert ends(capsys, *(str(model_path) if word == "MODEL" else word for word in words)) in (0, 2)


# ---- fuzzing -------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(), one, max_size=3))
FIELDS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "messages",
    "conversations",
    "weight",
    "group",
    "system",
)
TURNS = st.lists(st.fixed_dictionaries({}, optional={"role": SCALARS, "content": JSON, "from": SCALARS, "value": JSON}))
ROWS = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON | TURNS | st.just("text")))
KEYS = ("max_steps", "bf16", "lr_scheduler_type", "optim", "reference", "max_length", "peft", "progress", "scorers")


@FEW
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_any_rows(tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    """Rows are kept or refused by a reason; nothing else is raised."""
    for kind in ("pairs", "labelled"):
        try:
            report = prepare(rows, tokenizer, DataOptions(kind=kind, on_bad_row="skip"), progress=False).report
        except ValueError:
            continue
        assert report.rows_kept + report.rows_rejected == len(rows)


@FEW
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3), JSON, JSON, JSON)
def test_any_config(changes: dict[str, Any], loss: Any, model: Any, data: Any) -> None:
    """A config is checked or refused; nothing else is raised."""
    good = {"loss": {"name": "dpo"}, "model": {"name_or_path": "m"}, "data": {"train": "rows.jsonl"}, **changes}
    for values in (good, good | {"loss": loss}, good | {"model": model}, good | {"data": data}):
        try:
            load_config(values)
        except (ValueError, OSError):
            continue


@FEW
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.sampled_from(SUFFIXES))
def test_any_file(tmp_path: Path, capsys: Any, content: bytes, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    ends(capsys, "data", "check", str(path))
