"""A limit to the wall time of one piece of work, in whichever thread it runs."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class OutOfTime(BaseException):
    """The wall time given to a piece of work is over; no `except Exception` on the way may take it for a failure."""


@contextmanager
def deadline(limit_s: float | None) -> Iterator[None]:
    """Raises OutOfTime in the block once it has lasted `limit_s` seconds of wall time; None: never.

    A signal would reach the main thread only, and the workers of a cluster run their tasks in another one.
    """
    if limit_s is None:
        yield
        return
    thread = ctypes.c_ulong(threading.get_ident())
    lock, over = threading.Lock(), False

    def fire() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(OutOfTime))

    timer = threading.Timer(limit_s, fire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()
