"""The records of a run in an order that does not depend on how replicas took turns on the clock."""

from __future__ import annotations

import numpy as np

from sim.engine.recorder import Columns, Recorder, Table


class OrderedTable(Table):
    """A finished table."""

    __slots__ = ("_ordered",)

    def __init__(self, columns: Columns) -> None:
        super().__init__(tuple(columns))
        self._ordered = columns

    def to_columns(self) -> Columns:
        return self._ordered


def order_in_time(recorder: Recorder) -> None:
    """Puts the steps of all replicas in the order of their end, equal ones by replica, and what refers to them likewise.

    A step is written when it ends, but which of two replicas writes first at equal times is an accident of the event queue,
    lost where replicas run in processes of their own. Sums over the records depend on their order in the last digit.
    """
    steps = recorder.steps.to_columns()
    replica = steps["replica"]
    if not len(replica) or replica.min() == replica.max():
        return
    count = steps["iterations"]
    end_s = steps["start_s"] + count * (steps["first_s"] + steps["growth_s"] * (count - 1) / 2)
    order = np.lexsort((replica, end_s))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    for name, table in list(vars(recorder).items()):
        if not isinstance(table, Table) or name == "requests":
            continue
        columns = dict(table.to_columns())
        if name == "steps":
            rows = order
        elif "step" in columns:
            columns["step"] = place[columns["step"]]
            rows = np.argsort(columns["step"], kind="stable")
        else:
            rows = np.lexsort((columns["replica"], columns["end_s"]))
        setattr(recorder, name, OrderedTable({key: column[rows] for key, column in columns.items()}))
