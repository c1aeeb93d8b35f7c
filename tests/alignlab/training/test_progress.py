"""What a run says: lines for files, a table and one moving line for terminals, and nothing of it lost to files."""

import io
import json
import re
from types import SimpleNamespace

import pytest
from making import make_model, make_rows
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback

from alignlab import PreferenceConfig, PreferenceTrainer
from alignlab.training.progress import COLUMNS, Progress, groups_line, prefix_of

LOGS = {"loss": 0.6931, "rewards/accuracies": 0.5, "rewards/margins": 1 / 3, "logps/chosen": -35.25, "other": 1.0}
STATE = SimpleNamespace(is_world_process_zero=True, global_step=10, max_steps=40)


def told(capsys, logs):
    Progress("lines", 30).on_log(None, STATE, None, logs)
    return capsys.readouterr().out


def test_a_log_is_one_plain_line(capsys):
    line = "step 10 of 40  loss 0.6931  accuracy 0.5  margin 0.3333  chosen -35.25\n"
    assert told(capsys, LOGS) == line
    held_out = {f"eval_b_{name}": value for name, value in LOGS.items()} | {"eval_b_nll_loss": 3.0}
    assert told(capsys, held_out) == line.replace("40  ", "40  eval_b  ")
    assert told(capsys, {"train_runtime": 3725.0, "train_loss": 0.5}) == "trained for 1:02 h, mean loss 0.5\n"
    assert told(capsys, {"mine": 2.0, "epoch": 1.0}) == "mine 2\n"


def test_prefixes():
    assert prefix_of({"loss": 1.0, "eval_loss": 2.0}) == ""
    assert prefix_of({"eval_a_nll_loss": 1.0, "eval_a_loss": 2.0}) == "eval_a_"
    assert prefix_of({"train_loss": 1.0}) is None


def test_more_than_ten_groups_are_summed_up():
    ten = {f"group/g{n}/accuracy": n / 10 for n in range(10)}
    assert groups_line(ten, "").count("g") == 11
    many = {f"eval_group/g{n}/accuracy": ((7 * n) % 5000) / 5000 for n in range(5000)}
    assert groups_line(many, "eval_") == "  accuracy of the worst of 5000 groups: g0 0, g2143 0.0002, g4286 0.0004"
    losses = {f"group/{n}/loss": float(n) for n in range(11)}
    assert groups_line(losses, "") == "  loss of the worst of 11 groups: 10 10, 9 9, 8 8"
    assert groups_line(LOGS, "") is None


def test_names_of_groups_steer_no_terminal(capsys):
    assert "\\x1b[31mred" in told(capsys, LOGS | {"group/\x1b[31mred/accuracy": 1.0})


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_a_column_for_each_of_six_metrics(width):
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False)
    progress = Progress("live", 30, console)
    for _ in range(21):
        progress.on_log(None, STATE, None, LOGS | {"grad_norm": 12345.678, "learning_rate": 1.25e-06})
    lines = file.getvalue().splitlines()
    assert lines[0].split() == ["step", *COLUMNS]
    assert lines[0] == lines[21], "the heading comes again"
    assert lines[1].split() == ["10", "0.6931", "0.5", "0.3333", "-35.25", "1.235e+04", "1.25e-06"]
    assert {len(line) for line in lines} == {70 if width == 80 else 94}


def trained(tmp_path, tokenizer, **options):
    args = PreferenceConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        **options,
    )
    rows = make_rows(16, groups=tuple(f"g{n}" for n in range(12)))
    trainer = PreferenceTrainer(make_model(), args, "dpo", rows, 4, tokenizer)
    trainer.train()
    return trainer


def test_a_run_in_a_file_is_plain_lines_and_its_state_has_everything(tmp_path, tokenizer, capfd):
    """Three steps, fewer than logging_steps: the last is logged. No bar, no carriage return, no quoted number."""
    trainer = trained(tmp_path, tokenizer, progress_seconds=1e-9)
    out, err = capfd.readouterr()
    assert "\r" not in out + err
    assert "█" not in out + err
    assert "'" not in out
    assert re.search(r"^training: 1 of 3 steps \(33%\), [\d.e+]+ a second, \d+ s left$", out, re.MULTILINE)
    assert re.search(r"^reference: scoring: \d+ of 32 completions \(\d+%\), .* left$", out, re.MULTILINE)
    assert re.search(r"^eval.*: 1 of 2 batches \(50%\)", out, re.MULTILINE)
    assert re.search(r"^step 3 of 3  loss 0\.69\d*  accuracy ", out, re.MULTILINE)
    logged = [name for entry in trainer.state.log_history for name in entry if re.fullmatch("group/.*/accuracy", name)]
    assert len(logged) > 3
    assert "of the worst of" in out or len(set(logged)) <= 10


def test_a_terminal_has_a_live_line(tmp_path, tokenizer, capfd):
    trainer = trained(tmp_path, tokenizer, progress="live", logging_steps=1)
    out = capfd.readouterr().out
    assert trainer.progress.live is None, "it is gone at the end"
    assert len(re.findall("^ *step +loss +accuracy", out, re.MULTILINE)) == 1
    assert "trained for" in out


def test_stock_progress_is_replaced(tmp_path, tokenizer, capfd):
    trainer = trained(tmp_path, tokenizer, progress="none")
    kinds = [type(one) for one in trainer.callback_handler.callbacks]
    assert ProgressCallback not in kinds
    assert PrinterCallback not in kinds
    assert capfd.readouterr().out == ""
    assert json.dumps(trainer.state.log_history).count('"loss"') == 1
