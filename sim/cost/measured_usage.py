"""Which rows of which measured table answered a run, and how far look-ups went beyond them."""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.cost.interpolation import Curve
from sim.cost.kernels import Floats

SHOWN = 4
"""Shapes of a table that a line names; the rest are counted."""


@dataclass(slots=True)
class Usage:
    """Look-ups in one table."""

    origin: str
    rows: int
    """Of the table, the fastest of every shape."""
    engine: str = ""
    """Whose kernels the table holds; empty where it does not say."""
    lookups: int = 0
    outside: int = 0
    substitute: bool = False
    """The shape itself was not measured: that of its nearest relative stands in."""
    shapes: dict[str, None] = field(default_factory=dict)
    """The measured shapes whose rows answered."""
    beyond: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    """Coordinate -> (least asked, most asked, least measured, most measured), of those that left the measured range."""

    def count(self, name: str, curve: Curve, asked: Floats, apart: bool = False) -> None:
        """Look-ups of a curve at these values of its coordinate `name`.

        Args:
            apart: the curve itself stands for a shape beyond the measured ones.
        """
        outside = curve.outside(asked)
        self.lookups += asked.size
        self.outside += int((outside | apart).sum())
        if outside.any():
            low, high = curve.ends
            self.leave(name, float(asked.min()), float(asked.max()), low, high)

    def leave(self, name: str, least: float, most: float, low: float, high: float) -> None:
        """Writes down that coordinate `name` was asked from `least` to `most`, and measured from `low` to `high`."""
        before = self.beyond.get(name, (least, most, low, high))
        self.beyond[name] = (min(least, before[0]), max(most, before[1]), low, high)

    def line(self, kind: str, dtype: str) -> str:
        """For readers: the table, its rows in use, and what lies beyond them."""
        named = [*self.shapes][:SHOWN]
        more = [f"{len(self.shapes) - SHOWN} more"] if len(self.shapes) > SHOWN else []
        of = f" ({'; '.join(named + more)})" if named else ""
        nearest = ", a shape from its nearest measured relatives" if self.substitute else ""
        share = f"{self.outside / max(self.lookups, 1):.0%} of look-ups extrapolated"
        far = [
            f"{name} {least:,.0f} to {most:,.0f} where {low:,.0f} to {high:,.0f} were measured"
            for name, (least, most, low, high) in self.beyond.items()
        ]
        return f"{kind} {dtype}: {self.origin}, {self.rows} rows{of}, {share}{nearest}" + "".join(f"; {x}" for x in far)
