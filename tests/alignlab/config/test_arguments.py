"""Trainer arguments from Python: what cannot work is refused as it is from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from making import NEWER_CHECKPOINTING

from alignlab.config.arguments import PreferenceConfig


@pytest.mark.parametrize("key", ["enable_jit_checkpoint", "save_on_each_node"])
def test_what_would_save_in_another_way_is_refused(key: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {key: True}
    with pytest.raises(ValueError, match=f"{key}: True cannot work here: "):
        PreferenceConfig(output_dir=str(tmp_path), **options)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("log_level", "loud", "log_level: expected one of debug, info, warning, error, critical, detail, passive, "),
        ("dataloader_prefetch_factor", 0, "dataloader_prefetch_factor: expected at least 1, found 0"),
        ("weight_decay", -0.1, "weight_decay: expected at least 0, found -0.1"),
        ("dataloader_num_workers", -1, "dataloader_num_workers: expected at least 0, found -1"),
        ("logging_steps", -1, "logging_steps: expected more than 0, found -1"),
        ("eval_steps", 0, "eval_steps: expected more than 0, found 0"),
        ("save_steps", -5, "save_steps: expected more than 0, found -5"),
        ("torch_empty_cache_steps", 0, "torch_empty_cache_steps: expected at least 1, found 0"),
        ("ddp_timeout", 0, "ddp_timeout: expected more than 0, found 0"),
        ("ddp_backend", "nope", "ddp_backend: expected one of nccl, gloo, mpi, .*, found 'nope'$"),
        ("ddp_backend", "cpu:gloo,cuda:nope", "ddp_backend: expected one of nccl, gloo, mpi, "),
        ("ddp_backend", "gloo", "ddp_backend: one process runs, which connects to none; leave it out"),
        ("gradient_checkpointing_kwargs", {"reentrant": 1}, "gradient_checkpointing_kwargs.reentrant: .*use_reentrant"),
        pytest.param(
            "activation_checkpointing_kwargs",
            {"x": 1},
            "activation_checkpointing_kwargs.x: ",
            marks=NEWER_CHECKPOINTING,
        ),
        ("dataloader_multiprocessing_context", "nope", "dataloader_multiprocessing_context: expected one of .*fork"),
        ("dataloader_multiprocessing_context", "fork", "dataloader_multiprocessing_context: 'fork' starts nothing"),
        ("tf32", True, "tf32: this machine has none, leave it out"),
        (
            "accelerator_config",
            {"nope": 1},
            "accelerator_config: AcceleratorConfig.* unexpected keyword argument 'nope'",
        ),
    ],
)
def test_values_that_a_library_would_trip_over_are_named(key: str, value: Any, message: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {key: value}
    with pytest.raises(ValueError, match=f"^{message}"):
        PreferenceConfig(output_dir=str(tmp_path), **options)


def test_impossible_options_are_refused_from_python_too(tmp_path):
    with pytest.raises(ValueError, match="save_on_each_node: True cannot work here"):
        PreferenceConfig(output_dir=str(tmp_path), save_on_each_node=True)
    with pytest.raises(ValueError, match="on_bad_row: expected one of error, skip, found 'drop'"):
        PreferenceConfig(output_dir=str(tmp_path), on_bad_row="drop")


def test_a_tracker_stands_once_and_none_alone(tmp_path: Path) -> None:
    """Twice it was told every metric twice; of none beside another it was said that none is allowed."""
    for given, said in (
        (["tensorboard", "tensorboard"], "tensorboard stands there twice"),
        (["none", "tensorboard"], r"none stands alone, found \['none', 'tensorboard'\]"),
    ):
        with pytest.raises(ValueError, match=f"^report_to: {said}"):
            PreferenceConfig(output_dir=str(tmp_path), report_to=given)
    assert PreferenceConfig(output_dir=str(tmp_path), report_to=["none"]).report_to == []
