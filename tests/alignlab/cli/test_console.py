"""What reaches the terminal cannot steer it, and an error nobody foresaw is one line."""

import logging

import pytest
from rich.table import Table
from rich.text import Text

from alignlab.cli import commands, main
from alignlab.cli.console import _Formatter, show, start_logging


def test_codes_in_text_are_spelled(capsys):
    table = Table("group\x07")
    table.add_row(Text("\x1b[2J\x1b]0;title\x07red\u202e"))
    show(table, "\x1b[31m[bold]")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\\x1b[2J\\x1b]0;title" in out
    assert "\\u202e" in out
    assert "\\x1b[31m[bold]" in out


def test_codes_in_the_log_are_spelled(capsys):
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        start_logging()
        logging.getLogger("alignlab.some").warning("group \x1b[31mred")
    finally:
        root.handlers = before
    assert capsys.readouterr().err == "group \\x1b[31mred\n"


def test_lines_of_the_log_end_between_words_on_a_terminal(monkeypatch):
    """In a file they stay whole; a path is never cut."""
    path = "/data/" + "long" * 20
    record = logging.LogRecord(
        "alignlab", logging.INFO, "", 0, f"prepared rows: {'word ' * 20}in\n  {path}", None, None
    )
    assert "\n" not in _Formatter("%(message)s").format(record).partition("\n  /")[0]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    lines = _Formatter("%(message)s").format(record).split("\n")
    assert lines[0] == "prepared rows: word word word word word"
    assert all(len(line) <= 40 for line in lines if path not in line)
    assert lines[-1].strip() == path
    assert " ".join(" ".join(lines).split()) == " ".join(record.getMessage().split())


def test_codes_in_an_error_are_spelled(capsys):
    assert main(["data", "check", "no\x1b[31mfile.jsonl"]) == 2
    assert capsys.readouterr().err == "alignlab: error: no\\x1b[31mfile.jsonl: no such file or folder\n"


@pytest.fixture
def breaks(monkeypatch):
    def fail(words):
        error = KeyError("weird\n\x1b[31m" + "long " * 200)
        error.add_note("while loading the model")
        raise error

    monkeypatch.setitem(commands.READERS, "train", fail)


def test_an_error_of_a_library_is_one_line(capsys, breaks):
    assert main(["train"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert len(err) < 700
    assert err.startswith("alignlab: error: while loading the model: KeyError: ")
    assert "(in commands.py, main, line " in err
    assert err.endswith("; ALIGNLAB_DEBUG=1 shows the traceback\n")


def test_debugging_lets_it_through(breaks, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_DEBUG", "1")
    with pytest.raises(KeyError, match="weird"):
        main(["train"])
