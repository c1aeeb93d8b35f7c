"""Every key of a config is of one kind: what a resumed run cannot change, may change if told so, or may change."""

from __future__ import annotations

import pytest

from alignlab.config import CANNOT, CHANGES, HARMLESS, KINDS, Difference, differences, kind_of, schema


def test_every_key_is_of_exactly_one_kind() -> None:
    """A new key must be put into one of the tables of ``alignlab/config/resuming.py``."""
    keys = [key.name for group in schema().groups.values() for key in group]
    counts = {key: sum(key in table for table in KINDS.values()) for key in keys}
    assert {key: count for key, count in counts.items() if count != 1} == {}


@pytest.mark.parametrize(
    ("key", "before", "now", "kind"),
    [
        ("loss.name", "dpo", "ipo", CANNOT),
        ("loss.base.name", "dpo", "ipo", CANNOT),
        ("loss.beta", 0.1, 0.2, CHANGES),
        ("loss.base.beta", 0.1, 0.2, CHANGES),
        ("peft.r", 8, 16, CANNOT),
        ("optim", "adamw_torch", "sgd", CANNOT),
        ("seed", 1, 2, CANNOT),
        ("learning_rate", 1e-6, 2e-6, CHANGES),
        ("max_steps", 3, 6, HARMLESS),
        ("max_steps", 6, 3, CHANGES),
        ("max_steps", -1, 3, CHANGES),
        ("num_train_epochs", 1.0, 2.0, HARMLESS),
        ("num_train_epochs", 2.0, 1.0, CHANGES),
        ("logging_steps", 10, 1, HARMLESS),
        ("of_a_newer_library", None, 1, CHANGES),
    ],
)
def test_kinds(key: str, before: object, now: object, kind: str) -> None:
    assert kind_of(key, before, now) == kind


def test_differences_are_found_in_blocks_the_gravest_first() -> None:
    """Keys that only one config has count where they are not None."""
    before = {"logging_steps": 10, "loss": {"name": "dpo", "beta": 0.1}, "peft": None, "learning_rate": 1e-6}
    now = {
        "logging_steps": 5,
        "loss": {"name": "ipo", "beta": 0.1},
        "peft": {"r": 8},
        "learning_rate": 1e-6,
        "new": None,
    }
    found = differences(before, now)
    assert found == [
        Difference("loss.name", "dpo", "ipo", CANNOT),
        Difference("peft.r", None, 8, CANNOT),
        Difference("logging_steps", 10, 5, HARMLESS),
    ]
    assert str(found[0]) == "cannot go on     loss.name: dpo -> ipo"
    assert differences(now, now) == []
