"""Quantities with units, at the border only.

Inside twowalls every number is an SI float with its unit in its name. Strings such as "900 GB/s", "400 Gbit/s",
"80 GiB" or "2 us" stand in YAML files and on the command line and are parsed here. GB is 1e9 bytes, GiB is 2**30.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from sim.errors import InputError

# unit of the text -> (dimension, factor to the SI unit), for units that take prefixes
_UNITS: dict[str, tuple[str, float]] = {
    "B": ("bytes", 1.0),
    "bit": ("bytes", 1 / 8),
    "B/s": ("bytes_per_s", 1.0),
    "bit/s": ("bytes_per_s", 1 / 8),
    "s": ("s", 1.0),
    "FLOP/s": ("flops_per_s", 1.0),
    "FLOPS": ("flops_per_s", 1.0),
    "W": ("w", 1.0),
    "Hz": ("hz", 1.0),
}
# units that take no prefix ("5 min" is not five milli-inches)
_WHOLE_UNITS: dict[str, tuple[str, float]] = {"min": ("s", 60.0), "h": ("s", 3600.0), "$/h": ("usd_per_h", 1.0)}
# Times are written in small parts only ("2 Ms" is a slip for ms), everything else in large ones only ("80 mB" for MB).
_SMALL = {"m": -3, "u": -6, "µ": -6, "μ": -6, "n": -9}
_LARGE = {"k": 3, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"ki": 10, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_EXAMPLES = {
    "bytes": "80 GiB or 141 GB",
    "bytes_per_s": "900 GB/s or 400 Gbit/s",
    "s": "2 us, 50 ms, 1.5 s or 10 min",
    "flops_per_s": "989 TFLOP/s",
    "w": "700 W",
    "hz": "1.98 GHz",
    "usd_per_h": "2.5 $/h",
}
_TEXT = re.compile(r"^\s*([-+0-9.eE_]+?)\s*([A-Za-z$µμ][A-Za-z$µμ/]*)\s*$")


def parse(text: object, dimension: str, where: str = "value") -> float:
    """The quantity in `text` as an SI float of `dimension`.

    Args:
        text: a string such as "900 GB/s"; the number 0 needs no unit.
        dimension: one of bytes, bytes_per_s, s, flops_per_s, w, hz, usd_per_h.
        where: file and key path, for the error message.

    Raises:
        InputError: without a unit, with an unknown unit, or with a unit of another dimension.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool) and text == 0:
        return 0.0
    example = f"write it with a unit, such as {_EXAMPLES[dimension]}"
    if not isinstance(text, str):
        raise InputError(where, f"got {text!r}, a number without a unit", example)
    match = _TEXT.match(text)
    if match is None:
        raise InputError(where, f"got '{text}', which is not a number and a unit", example)
    number, unit = match.groups()
    known = _with_prefix(unit)
    if known is None:
        raise InputError(where, f"got '{text}' with the unknown unit '{unit}'", example)
    found, factor, power = known
    if found != dimension:
        raise InputError(where, f"got '{text}', a quantity of another kind", example)
    try:
        # Decimal, so that "8.3 us" is the float nearest to 8.3e-6 and not to 8.3 x 0.000001
        value = float(Decimal(number).scaleb(power)) * factor
    except ArithmeticError:
        raise InputError(where, f"got '{text}', which is not a number and a unit", example) from None
    if not math.isfinite(value):
        raise InputError(where, f"got '{text}', which is beyond every number", example)
    return value


def _with_prefix(unit: str) -> tuple[str, float, int] | None:
    """(dimension, factor, power of ten) of a unit with or without a prefix; None if there is no such unit."""
    if unit in _WHOLE_UNITS:
        return *_WHOLE_UNITS[unit], 0
    for bare, (dimension, factor) in _UNITS.items():
        prefix = unit.removesuffix(bare)
        if not unit.endswith(bare):
            continue
        if not prefix:
            return dimension, factor, 0
        powers = _SMALL if dimension == "s" else _LARGE
        if prefix in powers:
            return dimension, factor, powers[prefix]
        if prefix in _BINARY and dimension in ("bytes", "bytes_per_s"):
            return dimension, factor * 2.0 ** _BINARY[prefix], 0
    return None


def format_bytes(size_bytes: float, binary: bool = False) -> str:
    """`size_bytes` for people: decimal (141.1 GB) or binary (131.4 GiB) units."""
    step, units = (1024.0, ["B", "KiB", "MiB", "GiB", "TiB"]) if binary else (1000.0, ["B", "kB", "MB", "GB", "TB"])
    return _scaled(size_bytes, step, units)


def format_rate(rate_bytes_per_s: float) -> str:
    """A bandwidth for people, in decimal units a second."""
    return _scaled(rate_bytes_per_s, 1000.0, ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"])


def format_time(time_s: float) -> str:
    """A duration for people, from nanoseconds to hours."""
    if time_s != time_s:
        return "n/a"
    size = abs(time_s)
    if size >= 7200:
        return f"{time_s / 3600:.2f} h"
    if size >= 120:
        return f"{time_s / 60:.2f} min"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if size >= factor:
            return f"{time_s / factor:.4g} {unit}"
    return f"{time_s / 1e-9:.4g} ns" if time_s else "0 s"


def _scaled(value: float, step: float, units: list[str]) -> str:
    index = 0
    while abs(value) >= step and index < len(units) - 1:
        value /= step
        index += 1
    return f"{value:.4g} {units[index]}"
