"""A folder of results: runs the scenarios that it lacks, keeps each as it finishes, and ends with the ledger."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from sim.errors import TwoWallsError
from sim.scenario import Scenario
from sim.studies.attachments import attach
from sim.studies.batch import Job, Row, failed, run_many
from sim.studies.executor import Workers
from sim.studies.journal import Journal
from sim.studies.ledger import write_ledger
from sim.studies.software import software

_OWN_FILES = ("journal.jsonl", "ledger.csv", "ledger.parquet", "run.json")
"""What stands in the folder of a study beside the folders of its scenarios."""
_LONGEST_NAME_BYTES = 200
"""Of 255 that file systems allow."""
Told = Callable[[int, int], None]
"""Called with the number of scenarios that are over and of those given out."""


@dataclass(frozen=True, slots=True)
class Case:
    """One scenario of a study, small enough to hold ten thousand of them."""

    name: str
    key: str
    """Digest of the scenario, of the files it names and of the software: equal keys give equal results."""
    where: str
    text: str
    """The scenario as JSON; empty where it could not be read."""
    error: Row | None = None
    """What was wrong with the file."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the ledger."""

    @classmethod
    def of(cls, name: str, found: Scenario | TwoWallsError, facts: Mapping[str, Any] | None = None) -> Self:
        """The case of a scenario, or of what was wrong with it."""
        if isinstance(found, TwoWallsError):
            return cls(name, _digest(name, str(found)), name, "", failed(name, found), facts or {})
        key = _digest(found.content_hash(), software())
        text = json.dumps(found.to_dict(), separators=(",", ":"), ensure_ascii=False)
        return cls(found.name, key, found.where, text, None, facts or {})

    @property
    def scenario(self) -> dict[str, Any] | None:
        return json.loads(self.text) if self.text else None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Study:
    """The results of many scenarios in one folder.

    `journal.jsonl` has a line for each as it finishes; `ledger.csv` and `ledger.parquet` are written from it when the study
    is closed, whatever closes it, and `run.json` holds what differs from run to run.
    """

    def __init__(self, folder: Path, resume: bool = True) -> None:
        """
        Args:
            folder: is made if it is not there.
            resume: take over what an earlier run in the same folder has finished.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            (folder / "journal.jsonl").unlink(missing_ok=True)
        self.journal = Journal(folder / "journal.jsonl")
        self.cases: list[Case] = []
        """Asked for so far, each once, in the order in which the ledger has them."""
        self._folders: dict[str, str] = {}
        self._workers = 0
        self._started_s = time.monotonic()

    def run(
        self,
        cases: Iterable[Case],
        workers: Workers,
        told: Told | None = None,
        *,
        outputs: bool = False,
        plots: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Run those of the cases that have no result yet; a scenario named twice is run once.

        Args:
            workers: where they run.
            told: hears how far the study is.
            outputs: write the folder of each scenario, named like it.
            plots: with figures.
            timeout_s: wall time after which a scenario is given up.

        Raises:
            KeyboardInterrupt: after what had finished was written.
        """
        known = {case.key for case in self.cases}
        asked = list({case.key: case for case in cases}.values())
        self.cases += [case for case in asked if case.key not in known]
        self._folders = _folder_names(self.cases)
        self._workers = workers.size
        wanted = [case for case in asked if not self._is_there(case, outputs, plots)]
        over = len(asked) - len(wanted)
        for case in wanted:
            if case.error is not None:
                self._keep(case, case.error, outputs)
                over += 1
        running = [case for case in wanted if case.error is None]
        jobs = (self._job(case, workers, outputs, plots, timeout_s) for case in running)
        for index, row in run_many(jobs, workers):
            self._keep(running[index], row, outputs)
            over += 1
            if told is not None:
                told(over, min(workers.size, len(asked) - over))

    def _job(self, case: Case, workers: Workers, outputs: bool, plots: bool, timeout_s: float | None) -> Job:
        scenario = case.scenario or {}
        files = {} if workers.shares_disk else attach(scenario)
        return Job(scenario, case.where, outputs, plots, timeout_s, attachments=files)

    def _is_there(self, case: Case, outputs: bool, plots: bool) -> bool:
        """Whether the case is done, and its folder is the one of this very case."""
        if not self.journal.holds(case.key):
            return False
        if not outputs or self.journal.entry(case.key)["record"] is None:
            return True
        run = self.folder / self._folders[case.key] / "run.json"
        if plots and not run.with_name("timeline.png").is_file():
            return False
        try:
            return bool(json.loads(run.read_text(encoding="utf-8")).get("key") == case.key)
        except (OSError, ValueError):
            return False

    def _keep(self, case: Case, row: Row, outputs: bool) -> None:
        if outputs and row.files:
            folder = self.folder / self._folders[case.key]
            row.write(folder)
            # written last, with the key: a folder whose writing was interrupted does not pass for this result
            run = json.loads(row.files["run.json"]) | {"key": case.key}
            (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        self.journal.append(
            {
                "key": case.key,
                "name": case.name,
                "status": row.status,
                "exit_code": row.exit_code,
                "reason": row.reason,
                "final": row.final,
                "wall_seconds": row.wall_seconds,
                "record": row.record,
            }
        )

    def entries(self) -> Iterator[dict[str, Any]]:
        """What became of each case, in the order asked: the journal's entry with `scenario` and `facts`."""
        for case in self.cases:
            if case.key in self.journal:
                yield self.journal.entry(case.key) | {"scenario": case.scenario, "facts": dict(case.facts)}

    def entry(self, case: Case) -> dict[str, Any] | None:
        """What became of a case, as the journal has it; None if it has not been run."""
        return self.journal.entry(case.key) if case.key in self.journal else None

    @property
    def unfinished(self) -> int:
        """Cases without any result."""
        return sum(case.key not in self.journal for case in self.cases)

    def close(self) -> None:
        """Writes the ledger, and what differs from run to run."""
        write_ledger(self.entries, self.folder)
        facts = {
            "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
            "host": platform.node(),
            "command": sys.argv,
            "workers": self._workers,
            "wall_seconds": time.monotonic() - self._started_s,
            "scenario_wall_seconds": {e["key"]: e["wall_seconds"] for e in self.entries()},
        }
        (self.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        self.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _folder_names(cases: Sequence[Case]) -> dict[str, str]:
    """A folder name for each key: the scenario's name, and part of the key where another, or the study, has the same name."""
    clean = {case.key: _as_file_name(case.name) for case in cases}
    counts = Counter([*_OWN_FILES, *clean.values()])
    shared = {name for name, count in counts.items() if count > 1}
    return {key: f"{name}-{key[:8]}" if name in shared else name for key, name in clean.items()}


def _as_file_name(name: str) -> str:
    """`name` without what has a meaning in paths, as long as every file system takes it with part of a key behind."""
    clean = "".join(c if c.isalnum() or c in "-_.=," else "_" for c in name)
    if clean.startswith("."):  # the folder itself, the one above, or a hidden one
        clean = "_" + clean[1:]
    return clean.encode()[:_LONGEST_NAME_BYTES].decode(errors="ignore")
