"""Predictions for rows that measure one kernel, one collective or the memory of a deployment."""

from __future__ import annotations

from sim.errors import InputError
from sim.studies.measured_rows import MeasuredRow


def kernel_prediction(row: MeasuredRow) -> float:
    """The predicted value of a row, in SI units.

    Raises:
        InputError: the row does not say enough, or nothing here models it.
    """
    raise InputError(row.kind, f"metric '{row.metric}' is not priced", "")
