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


@pytest.mark.parametrize(("text", "found"), [("{{ 1/0 }}", "mapping"), ("? [a, b]\n: c", "sequence")])
def test_a_key_that_is_no_text_is_named_by_its_line(text, found):
    """As a template that opens with braces on a command line is, without quotes."""
    with pytest.raises(ValueError, match=f"^test: line 1: a key must be text, found a {found}; text that opens with a"):
        parse_yaml(text, "test")


def test_written_yaml_reads_back_the_same():
    values = {"a": ["1e-3", "yes", "null", "2024-01-01", "010", "", "ü: x", 1e-3, 1e20, -0.5, None, True, 3, "3"]}
    found = parse_yaml(write_yaml(values), "test")
    assert found == values
    assert [type(one) for one in found["a"]] == [type(one) for one in values["a"]]
