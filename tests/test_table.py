"""Tables: written, and read back by others."""

import csv
import math
from typing import Any

import pytest

from guidance.estimate import Estimate
from guidance.table import as_csv, as_text, columns, flat, short

REAL = {"scale": "real", "n": 3, "accuracy": Estimate(0.987654321, 0.9, 1.0, 3), "cents": Estimate(123456.789, 5, 6, 3)}
ROW = {"scale": -1.5, "n": 40, "accuracy": Estimate(0.5, 0.25, 0.75, 40), "ink": Estimate(2.0, math.nan, math.nan, 1), "evaluations": 1.5}


def test_an_estimate_is_three_columns():
    assert flat(REAL) == {
        "scale": "real",
        "n": 3,
        "accuracy": 0.987654321,
        "accuracy_low": 0.9,
        "accuracy_high": 1.0,
        "cents": 123456.789,
        "cents_low": 5,
        "cents_high": 6,
    }
    assert list(flat(ROW))[-2:] == ["ink_high", "evaluations"] and flat({}) == {}


def test_columns_are_those_of_any_row_and_evaluations_are_last():
    assert columns([{"evaluations": 1, "b": 2}, {"a": 1, "b": 3}]) == ["b", "a", "evaluations"]
    assert columns([REAL, ROW]) == ["scale", "n", "accuracy", "cents", "ink", "evaluations"] and columns([]) == []


def test_rows_are_written_to_five_digits_and_what_does_not_apply_is_left_empty():
    text = as_csv([REAL, ROW])
    first, second = csv.DictReader(text.splitlines())
    assert list(first)[-4:] == ["ink", "ink_low", "ink_high", "evaluations"] and "\r" not in text and text.endswith("\n")
    assert (first["scale"], first["n"], first["accuracy"], first["cents"]) == ("real", "3", "0.98765", "1.2346e+05")
    assert first["ink"] == first["ink_high"] == first["evaluations"] == second["cents"] == second["cents_low"] == ""
    assert (second["scale"], second["evaluations"], second["accuracy_low"], second["ink_low"]) == ("-1.5", "1.5", "0.25", "nan")


def test_rows_without_intervals_are_as_they_are():
    rows = [{"scale": "real", "n": 3, "first": 1.0}, {"scale": -1.5, "n": 40, "first": 123.456789}, {"scale": 2.0, "say": 'a, "b"\nc'}]
    assert list(csv.reader(as_csv(rows).splitlines(keepends=True))) == [
        ["scale", "n", "first", "say"],
        ["real", "3", "1", ""],
        ["-1.5", "40", "123.46", ""],
        ["2", "", "", 'a, "b"\nc'],
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12349, "0.123"),
        (-9.8765, "-9.877"),
        (0.0004, "0.000"),
        (-0.0004, "0.000"),
        (0.0006, "0.001"),
        (0.0, "0.000"),
        (10.0, "10.00"),
        (-98.765, "-98.77"),
        (123.456, "123.5"),
        (-1234.6, "-1235"),
        (99999.0, "99999"),
        (123456.0, "1.23e+05"),
        (-2.5e9, "-2.50e+09"),
        (math.nan, ""),
        (math.inf, "inf"),
        (None, ""),
        (12345, "12345"),
        ("real", "real"),
        (Estimate(0.5, 0.1, 0.9, 7), "0.500"),
        (Estimate(math.nan, math.nan, math.nan, 0), ""),
    ],
    ids=str,
)
def test_values_as_they_are_read(value: Any, text: str):
    assert short(value) == text


def test_a_text_has_its_columns_aligned():
    lines = as_text([REAL, {**ROW, "two_words": 7}]).splitlines()
    assert [line.split() for line in lines] == [
        ["scale", "n", "accuracy", "cents", "ink", "two", "words", "evaluations"],
        ["real", "3", "0.988", "1.23e+05"],
        ["-1.5", "40", "0.500", "2.000", "7", "1.500"],
    ]
    assert len({len(line) for line in lines}) == 1
    for name, cells in (("scale", (" real", " -1.5")), ("accuracy", ("0.988", "0.500")), ("two words", ("", "7"))):
        end = lines[0].index(name) + len(name)
        assert all(line[:end].endswith(cell) for line, cell in zip(lines[1:], cells, strict=True)), name
    assert as_text([{"scale": 1.0, "x": 1.0}, {"scale": 1.25, "x": 2}]).splitlines() == ["scale      x", "    1  1.000", " 1.25      2"]
