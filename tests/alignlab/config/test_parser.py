"""YAML as version 1.2 has it, read and written back."""

import pytest

from alignlab.config.parser import parse_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: {b: 1e-3}}", {"a": {"b": 0.001}}),  # text in YAML 1.1
        ("[1.5e+3, .5, 5., -2e6, .inf, 0]", [1500.0, 0.5, 5.0, -2e6, float("inf"), 0]),
        ("[yes, no, on, off]", ["yes", "no", "on", "off"]),  # booleans in YAML 1.1
        ("[2024-01-01, 1:30, 1_000, 010]", ["2024-01-01", "1:30", "1_000", "010"]),  # date and integers in YAML 1.1
        ("[true, null, ~, '1e-3']", [True, None, None, "1e-3"]),
        ("{base: &b {x: 1, y: 2}, other: {<<: *b, y: 3}}", {"base": {"x": 1, "y": 2}, "other": {"x": 1, "y": 3}}),
    ],
)
def test_scalars_are_read_as_yaml_1_2_has_them(text, value):
    assert parse_yaml(text, "test") == value


def test_written_yaml_reads_back_the_same():
    values = {"a": ["1e-3", "yes", "null", "2024-01-01", "010", "", "ü: x", 1e-3, 1e20, -0.5, None, True, 3, "3"]}
    found = parse_yaml(write_yaml(values), "test")
    assert found == values
    assert [type(one) for one in found["a"]] == [type(one) for one in values["a"]]
