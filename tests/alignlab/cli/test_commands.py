"""The commands, as people type them."""

import json
import subprocess
import sys
from importlib import metadata

import pytest
from making import make_rows

from alignlab import losses
from alignlab.cli import main


def fails(capsys, *words):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("alignlab: error: ")
    return captured.err.removeprefix("alignlab: error: ").strip()


READ_AT_ONCE = ["", "score", "plan", "eval", "demo", "losses", "data check", "report", "sweep"]
READ_AT_ONCE += ["cache info", "cache verify", "cache prune"]


@pytest.mark.parametrize("command", READ_AT_ONCE)
def test_help_comes_at_once(command):
    """Nothing heavy is imported for it."""
    script = (
        "import sys; from alignlab.cli import main\n"
        "try: assert main([*sys.argv[1:], '--help']) == 0\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, *command.split()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: alignlab {command}".rstrip())


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for command in ("train", "losses", "data", "cache", "eval", "demo"):
        assert f"\n    {command} " in shown


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"alignlab {metadata.version('alignlab')}\n"


def test_losses_lists_the_zoo(capsys):
    assert main(["losses"]) == 0
    shown = capsys.readouterr().out
    for name in losses.names():
        assert f"│ {name} " in shown
    assert "beta: 0.1" in shown
    assert "ref_logps" in shown


def test_losses_describes_one(capsys):
    assert main(["losses", "ipo"]) == 0
    shown = capsys.readouterr().out
    assert "formula: " in shown
    assert "kto" not in shown


def test_losses_names_the_nearest(capsys):
    assert "did you mean" in fails(capsys, "losses", "dop")


def test_losses_check_of_ones_own(capsys, tmp_path):
    good = (
        "def margin(batch, scale: float = 1.0):\n    return scale * (batch.rejected.sum_logps - batch.chosen.sum_logps)"
    )
    (tmp_path / "mine.py").write_text(good + "\n\ndef mean(batch):\n    return batch.chosen.sum_logps.mean()\n")
    assert main(["losses", "check", f"{tmp_path}/mine.py:margin"]) == 0
    assert "keeps the contract" in capsys.readouterr().out
    assert main(["losses", "check", f"{tmp_path}/mine.py:mean"]) == 1
    assert "breaches of the contract" in capsys.readouterr().out


def test_data_check(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps(row) for row in make_rows(3)]
    (tmp_path / "good.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert main(["data", "check", "good.jsonl"]) == 0
    capsys.readouterr()
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
    assert main(["data", "check", "bad.jsonl"]) == 1
    assert "bad.jsonl:4" in capsys.readouterr().out


def test_cache_commands_on_an_empty_cache(capsys, tmp_path):
    for words in (["info"], ["verify"], ["prune", "--older_than_days", "3"]):
        assert main(["cache", *words, "--dir", str(tmp_path / "none")]) == 0
    assert "0 damaged shards and prepared sets" in capsys.readouterr().out
    assert "names 0 stores" in fails(capsys, "cache", "prune", "abc", "--dir", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--learning_rate", "1"], "which config?"),
        (["train", "nope"], "no config 'nope'; shipped ones"),
        (["train", "dpo", "--loss.beat", "1"], "loss.beat: there is no option 'beat'; did you mean beta"),
        (["train", "dpo", "--beta", "1"], "beta: not a key of this config; it is an option of the loss"),
        (["train", "dpo", "hh"], "one config at a time"),
        (["data", "check", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_errors_are_one_line(capsys, words, message):
    assert message in fails(capsys, *words)


@pytest.mark.slow
def test_an_error_is_all_that_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "alignlab", "train", "nope"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("alignlab: error: no config 'nope'")
    assert done.stderr.count("\n") == 1


def test_debug_lets_the_traceback_through(monkeypatch):
    monkeypatch.setenv("ALIGNLAB_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match="no config 'nope'"):
        main(["train", "nope"])


def test_data_check_writes_its_figures_and_data_show_prints_rows(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    row = {"context": [{"role": "user", "content": "Hi?"}], "response1": "Yes.", "response2": "No."}
    path.write_text(json.dumps({**row, "overall_preference": -2}) + "\n")
    files = ["--json", str(tmp_path / "check.json"), "--html", str(tmp_path / "check.html")]
    words = ["data", "check", str(path), "--rows", "5", "--rows-per-step", "2", "--against", str(path), *files]
    assert main(words) == 0
    assert f"{path}: read as HelpSteer3" in capsys.readouterr().out.replace("\n", "")
    figures = json.loads((tmp_path / "check.json").read_text())
    assert (figures["steps_per_epoch"], figures["overlap"]["same"], figures["sampled_of"]) == (1, 1, 1)
    assert "<h1>Data check</h1>" in (tmp_path / "check.html").read_text()
    assert main(["data", "show", str(path), "-n", "1", "--format", "helpsteer3"]) == 0
    assert "prompt (21)\nuser: Hi?\nassistant: \nchosen (5, of which 5 count)\nYes." in capsys.readouterr().out
    assert main(["data", "show", str(path), "-n", "0"]) == 2
    assert "-n must be at least 1, found 0" in capsys.readouterr().err
