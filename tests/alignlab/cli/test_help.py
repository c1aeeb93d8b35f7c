"""Every command says what it takes, with examples; that of `train` fits a screen."""

import pytest

from alignlab.cli import main

COMMANDS = ["train", "score", "plan", "eval", "demo", "losses", "data check", "data show", "report", "sweep"]
COMMANDS += ["recipes", "new", "import", "cache info", "cache verify", "cache prune", "sample", "judge", "pair"]
COMMANDS += ["rounds"]


def help_of(capsys, command, word="--help"):
    if command in ("train", "score"):
        assert main([command, word]) == 0
    else:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([*command.split(), word])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_options_and_examples(capsys, command):
    shown = help_of(capsys, command)
    assert shown.startswith(f"usage: alignlab {command} ")
    before, examples = shown.split("\nexamples:\n")
    assert "  -" in before
    assert all(line.startswith(f"  alignlab {command}") for line in examples.rstrip().splitlines())


def test_trains_help_fits_a_screen(capsys):
    """25 lines of 80 columns; every key stands in --help-all."""
    lines = help_of(capsys, "train").splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    every = help_of(capsys, "train", "--help-all")
    for key in ("\nprogress ", "\nprogress_seconds ", "\nmodel.revision ", "\nadam_beta1 "):
        assert key in every
