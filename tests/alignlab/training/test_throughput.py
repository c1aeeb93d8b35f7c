"""Throughput: what is counted, and what of the time."""

import time

import pytest
from making import make_model, make_rows

from alignlab import PreferenceConfig, PreferenceTrainer
from alignlab.training.throughput import Throughput, peak_memory


def test_rows_and_tokens_of_all_ranks_over_the_time_since_the_last_lap(monkeypatch):
    """Two ranks of 4 and 2 rows with 30 + 20 and 10 + 0 tokens in 2 s; 5 s of evaluation between are left out."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Throughput()
    now[0] += 1
    with clock.stopped():
        now[0] += 5
    now[0] += 1
    parts = [
        {"objective": (0.5, 4.0), "lengths/chosen": (30.0, 4.0), "lengths/rejected": (20.0, 4.0)},
        {"objective": (0.1, 2.0), "lengths/chosen": (10.0, 2.0)},
        {},
    ]
    assert clock.lap(parts) == {"speed/rows_per_second": 3.0, "speed/tokens_per_second": 30.0}
    now[0] += 4
    assert clock.lap(parts[1:]) == {"speed/rows_per_second": 0.5, "speed/tokens_per_second": 2.5}


def test_a_run_logs_both_and_its_memory(tmp_path, tokenizer):
    """Rows and tokens were counted over the same time: their ratio is the mean length of two completions."""
    options = {"per_device_train_batch_size": 4, "max_steps": 3, "logging_steps": 1, "disable_tqdm": True}
    args = PreferenceConfig(output_dir=str(tmp_path), save_strategy="no", **options)
    run = PreferenceTrainer(make_model(), args, "dpo", make_rows(12), processing_class=tokenizer)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        ratio = entry["speed/tokens_per_second"] / entry["speed/rows_per_second"]
        assert ratio == pytest.approx(entry["lengths/chosen"] + entry["lengths/rejected"])
        assert 0 < entry["memory/peak_gb"] <= peak_memory()
