"""Quantities with units, at the border only.

Inside twowalls every number is an SI float with its unit in its name. Strings such as "900 GB/s", "400 Gbit/s",
"80 GiB" or "2 us" stand in YAML files and on the command line and are parsed here. GB is 1e9 bytes, GiB is 2**30.
"""

from __future__ import annotations

import re

from sim.errors import InputError

# unit of the text -> (dimension, factor to the SI unit); prefixes are read by QuantiPhy
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
    "$/h": ("usd_per_h", 1.0),
}
# units that take no prefix ("5 min" is not five milli-inches)
_WHOLE_UNITS: dict[str, tuple[str, float]] = {"min": ("s", 60.0), "h": ("s", 3600.0), "$/h": ("usd_per_h", 1.0)}
_EXAMPLES = {
    "bytes": "80 GiB or 141 GB",
    "bytes_per_s": "900 GB/s or 400 Gbit/s",
    "s": "2 us, 50 ms, 1.5 s or 10 min",
    "flops_per_s": "989 TFLOP/s",
    "w": "700 W",
    "hz": "1.98 GHz",
    "usd_per_h": "2.5 $/h",
}
_TEXT = re.compile(r"^\s*([-+0-9.eE_]+?)\s*([A-Za-z$µ][A-Za-z$µ/]*)\s*$")
_PREFIXES = "QRYZEPTGMkKmuµn"


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
    if unit in _WHOLE_UNITS:
        found, value = _WHOLE_UNITS[unit][0], _number(number, text, where, example) * _WHOLE_UNITS[unit][1]
    else:
        found, value = _with_prefix(number, unit, text, where, example)
    if found != dimension:
        raise InputError(where, f"got '{text}', a quantity of another kind", example)
    return value


def _number(number: str, text: str, where: str, example: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise InputError(where, f"got '{text}', which is not a number and a unit", example) from None


def _with_prefix(number: str, unit: str, text: str, where: str, example: str) -> tuple[str, float]:
    """(dimension, SI value) of a number whose unit may carry an SI or binary prefix."""
    bare = unit
    if bare not in _UNITS:
        stripped = unit[1:] if unit[:1] in _PREFIXES else unit
        bare = stripped[1:] if stripped[:1] == "i" and stripped[1:] in _UNITS else stripped
    if bare not in _UNITS:
        raise InputError(where, f"got '{text}' with the unknown unit '{unit}'", example)
    from quantiphy import Quantity

    _number(number, text, where, example)
    dimension, factor = _UNITS[bare]
    value = float(Quantity(f"{number} {unit}".replace("µ", "u"), binary=True))
    return dimension, value * factor


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
