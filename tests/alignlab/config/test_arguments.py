"""Trainer arguments from Python: what cannot work is refused as it is from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignlab.config.arguments import PreferenceConfig


@pytest.mark.parametrize("key", ["enable_jit_checkpoint", "save_on_each_node"])
def test_what_would_save_in_another_way_is_refused(key: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {key: True}
    with pytest.raises(ValueError, match=f"{key}: True cannot work here: "):
        PreferenceConfig(output_dir=str(tmp_path), **options)


def test_impossible_options_are_refused_from_python_too(tmp_path):
    with pytest.raises(ValueError, match="save_on_each_node: True cannot work here"):
        PreferenceConfig(output_dir=str(tmp_path), save_on_each_node=True)
    with pytest.raises(ValueError, match="on_bad_row: expected one of error, skip, found 'drop'"):
        PreferenceConfig(output_dir=str(tmp_path), on_bad_row="drop")
