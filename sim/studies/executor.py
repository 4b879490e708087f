"""Where scenarios are run: processes of this machine, or the workers of a dask cluster, behind one interface."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from sim.errors import InputError, nearest

T = TypeVar("T")
_AHEAD = 3
"""Jobs given out for each worker: one under way, the others so that it never waits. Few, so that memory stays bounded and
the death of a worker puts few under suspicion."""


class Workers(Protocol):
    """Runs functions elsewhere, through futures of concurrent.futures."""

    size: int
    """Functions that run at a time."""
    shares_disk: bool
    """Whether a worker reads the files of this machine."""

    window: int
    """Functions to give out at a time."""

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]: ...

    def lost(self, error: Exception) -> bool:
        """Whether `error` says that a worker died under a function, and not what the function did."""
        ...

    def alone(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """The function's value, run with nothing beside it after a worker has died; None if it dies again."""
        ...


class LocalWorkers:
    """Processes of this machine; after the death of one, the others are replaced too."""

    shares_disk = True

    def __init__(self, count: int | None = None) -> None:
        self.size = count or os.cpu_count() or 1
        self.window = _AHEAD * self.size
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        if self._pool is None:
            self._pool = _pool(self.size)
        return self._pool.submit(function, *arguments)

    def lost(self, error: Exception) -> bool:
        return isinstance(error, BrokenExecutor)

    def alone(self, function: Callable[..., T], *arguments: Any) -> T | None:
        self.close(at_once=True)
        pool = _pool(1)
        try:
            return pool.submit(function, *arguments).result()
        except BrokenExecutor:
            return None
        finally:
            _end(pool, at_once=True)

    def close(self, at_once: bool = False) -> None:
        """Ends the processes; `at_once`: whatever they are doing."""
        if self._pool is not None:
            _end(self._pool, at_once)
        self._pool = None


def _pool(count: int) -> ProcessPoolExecutor:
    # a forked worker finds the engine imported; a spawned one imports it with its first job
    import sim.simulate  # noqa: F401

    return ProcessPoolExecutor(max_workers=count, initializer=_begin)


def _end(pool: ProcessPoolExecutor, at_once: bool) -> None:
    if at_once:
        for process in list((pool._processes or {}).values()):
            process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """A worker ends at once and silently on Ctrl-C, whose report is its parent's, and never outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


class DaskWorkers:
    """Workers of a running dask.distributed scheduler. It hands what a dead worker was doing to another by itself."""

    shares_disk = False

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            hint = "install it with: pip install 'twowalls[cluster]'"
            raise InputError("--executor", "dask needs the package distributed", hint) from None
        where = f"--executor dask://{address}"
        try:
            # distributed is untyped in parts
            make: Any = Client
            self._client: Any = make(f"tcp://{address}", timeout=5, set_as_default=False)
            self._client.wait_for_workers(1, timeout=30)
        except (OSError, TimeoutError) as error:
            hint = "start `dask scheduler`, then `dask worker ADDRESS` on each machine"
            raise InputError(where, f"no scheduler with a worker answers there ({error})", hint) from None
        self._executor: Executor = self._client.get_executor(pure=False)
        self._same_software(where)
        self.size: int = max(1, sum(self._client.nthreads().values()))
        self.window = _AHEAD * self.size

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._executor.submit(function, *arguments)

    def lost(self, error: Exception) -> bool:
        from distributed.scheduler import KilledWorker

        return isinstance(error, KilledWorker)

    def alone(self, function: Callable[..., T], *arguments: Any) -> T | None:
        return self.submit(function, *arguments).result()

    def _same_software(self, where: str) -> None:
        """Refuses a worker whose simulator would give other numbers."""
        from sim.studies.software import software

        mine = software()
        found = self._client.run(software, on_error="return")
        for worker, digest in found.items():
            if digest != mine:
                hint = "install the same twowalls on every worker: pip install 'twowalls[cluster]'"
                raise InputError(where, f"{worker} has another twowalls, or other versions below it", hint)

    def close(self, at_once: bool = False) -> None:
        """Leaves the cluster as it was found; `at_once`: what it was given is forgotten."""
        self._executor.shutdown(wait=not at_once)
        self._client.close()


@contextmanager
def open_workers(spec: str | None = None, count: int | None = None) -> Iterator[Workers]:
    """The workers that `spec` names, ended when the block ends.

    Args:
        spec: None or local: processes of this machine; dask://HOST:PORT: a running scheduler.
        count: local processes at a time; None: one a core.

    Raises:
        InputError: an unknown spec; dask is not installed; nobody answers at the address.
    """
    kind, _, address = (spec or "local").partition("://")
    if kind not in ("local", "dask") or (kind == "dask") != bool(address):
        raise InputError("--executor", f"got '{spec}'", nearest(kind, ("local", "dask://HOST:PORT")))
    workers = DaskWorkers(address) if kind == "dask" else LocalWorkers(count)
    try:
        yield workers
    except BaseException:
        workers.close(at_once=True)
        raise
    workers.close()
