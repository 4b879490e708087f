"""Quantities with units, at the border."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.units import format_bytes, format_rate, format_time, parse


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("900 GB/s", "bytes_per_s", 900e9),
        ("400 Gbit/s", "bytes_per_s", 50e9),
        ("80 GiB", "bytes", 80 * 2**30),
        ("1 kiB", "bytes", 1024),
        ("1 KB", "bytes", 1000),
        ("141GB", "bytes", 141e9),
        ("2 us", "s", 2e-6),
        ("8.3 µs", "s", 8.3e-6),
        ("8.3 μs", "s", 8.3e-6),
        ("50 ms", "s", 0.05),
        ("5 min", "s", 300),
        ("1.5 h", "s", 5400),
        ("1e3 s", "s", 1000),
        ("989 TFLOP/s", "flops_per_s", 989e12),
        ("700 W", "w", 700),
        ("1.98 GHz", "hz", 1.98e9),
        ("2.5 $/h", "usd_per_h", 2.5),
        (0, "s", 0),
    ],
)
def test_a_quantity_is_read_exactly(text, dimension, value):
    assert parse(text, dimension) == value


@pytest.mark.parametrize(
    ("text", "dimension", "problem"),
    [
        (5, "s", "got 5, a number without a unit"),
        (True, "s", "got True, a number without a unit"),
        ("64", "bytes", "got '64', which is not a number and a unit"),
        ("1.2.3 s", "s", "got '1.2.3 s', which is not a number and a unit"),
        ("5 GBps", "bytes_per_s", "got '5 GBps' with the unknown unit 'GBps'"),
        ("80 Gb", "bytes", "got '80 Gb' with the unknown unit 'Gb'"),
        ("80 mB", "bytes", "got '80 mB' with the unknown unit 'mB'"),
        ("2 Ms", "s", "got '2 Ms' with the unknown unit 'Ms'"),
        ("3 GiHz", "hz", "got '3 GiHz' with the unknown unit 'GiHz'"),
        ("5 W", "s", "got '5 W', a quantity of another kind"),
        ("80 GB/s", "bytes", "got '80 GB/s', a quantity of another kind"),
        ("1e400 s", "s", "got '1e400 s', which is beyond every number"),
    ],
)
def test_what_is_no_quantity_is_refused_with_an_example(text, dimension, problem):
    with pytest.raises(InputError) as caught:
        parse(text, dimension, "a.yaml: slo.ttft")
    assert caught.value.where == "a.yaml: slo.ttft"
    assert caught.value.problem == problem
    assert caught.value.hint.startswith("write it with a unit, such as ")


@settings(derandomize=True, deadline=None)
@given(st.floats(min_value=1e-9, max_value=1e9))
def test_seconds_survive_being_written(seconds):
    assert parse(f"{seconds!r} s", "s") == seconds


@settings(derandomize=True, deadline=None)
@given(st.integers(min_value=1, max_value=10**6))
def test_a_bit_is_an_eighth_of_a_byte_and_gib_is_a_power_of_two(number):
    assert parse(f"{number} Gbit/s", "bytes_per_s") * 8 == parse(f"{number} GB/s", "bytes_per_s")
    assert parse(f"{number} GiB", "bytes") == number * 2**30
    assert parse(f"{number} ms", "s") == number / 1000


def test_numbers_are_written_for_people():
    assert format_bytes(141.1e9) == "141.1 GB"
    assert format_bytes(80 * 2**30, binary=True) == "80 GiB"
    assert format_rate(3.35e12) == "3.35 TB/s"
    assert [format_time(t) for t in (8.3e-6, 0.05, 1.5, 300, 7200, 3e-9, 0)] == [
        "8.3 us", "50 ms", "1.5 s", "5.00 min", "2.00 h", "3 ns", "0 s",
    ]  # fmt: skip
    assert format_time(float("nan")) == "n/a"
