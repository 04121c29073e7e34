"""An append-only account of a run: episodes, failures, restarts and cost, one JSON line each.

Several processes may append to one file: each record is a single `write` to a file opened with O_APPEND, which Linux
keeps whole for local files. A run that was killed may leave a torn last line; readers skip it and writers start a new
line after it.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Account:
    """What a ledger adds up to. Always: started = finished + failed + in_flight."""

    started: int
    finished: int
    failed: int
    in_flight: int
    restarts: Mapping[str, int]  # cause -> count
    env_steps: int  # of the episodes that ended
    unlearned_steps: int = 0  # collected, but what was learned of them is lost

    @property
    def balanced(self) -> bool:
        return self.in_flight >= 0 and self.started == self.finished + self.failed + self.in_flight


class Ledger:
    """Appends records to a file. Safe to open from several processes."""

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.fsync = path, fsync
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # close the line that a killed writer tore

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def write(self, event: str, /, **fields: Any) -> None:
        """Append one record. `event` is a free word; see `account` for those that count."""
        self.write_many([{"event": event, **fields}])

    def write_many(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records in one system call."""
        now = round(time.time(), 3)
        text = "".join(json.dumps({"time": now, **_plain(r)}, allow_nan=False) + "\n" for r in records)
        if not text:
            return
        raw = text.encode()
        if os.write(self._file, raw) != len(raw):
            raise OSError(f"could not append all of a record to {self.path}: is the disk full?")
        if self.fsync:
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that are not finite become null: JSON has no word for them, and a run must not die of its account."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file, oldest first; nothing if there is no file.

    A line that a killed writer tore is skipped where it can occur: at the end, or before a writer that resumed."""
    if not path.exists():
        return
    with path.open("rb") as f:
        for line in f:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


class Flights:
    """Episodes under way at each rollout worker, so that those of a worker that is lost can be counted."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def landed(self, worker: int, stats: Mapping[str, float]) -> list[dict[str, Any]]:
        """Take note of a segment's `stats`; a restart that nobody noticed, as an event, if they show one."""
        lost = self._counts.get(worker, 0) - int(stats["carried"])
        self._counts[worker] = int(stats["in_flight"])
        if lost <= 0:
            return []
        return [{"kind": "worker_restart", "worker": worker, "cause": "found restarted", "lost": lost}]

    def lost(self, worker: int) -> int:
        """How many episodes the loss of this worker ended."""
        return self._counts.pop(worker, 0)


def account(records: Iterable[Mapping[str, Any]]) -> Account:
    """Add up records.

    `started` may carry `count`. An `episode` is finished, or failed if it says `valid: false`; its `cause` is then that
    of the simulator's restart. Events named `*_restart` are restarts of workers; the episodes that one ended (`lost`)
    are failed. A resumed run writes `resumed`: episodes that were in flight when it was killed count as failed. A
    ledger without any `started` knows of none in flight. Any record may carry `unlearned_steps`.
    """
    started = finished = failed = steps = unlearned = 0
    told = False
    restarts: Counter[str] = Counter()
    for r in records:
        event, count = str(r.get("event")), int(r.get("count", 1))
        unlearned += int(r.get("unlearned_steps") or 0)
        if event == "started":
            started, told = started + count, True
        elif event == "episode":
            steps += int(r.get("length", 0))
            if r.get("valid", True):
                finished += 1
            else:
                failed += 1
                restarts[_kind(r)] += 1
        elif event == "resumed":
            if told:
                failed = started - finished
            started = finished + failed  # what happened before the first `started` was not told
        elif event.endswith("_restart"):
            failed += int(r.get("lost", 0))
            restarts[f"{event.removesuffix('_restart')} {_kind(r)}"] += count
    started = started if told else finished + failed
    return Account(started, finished, failed, started - finished - failed, dict(restarts), steps, unlearned)


def _kind(record: Mapping[str, Any]) -> str:
    """`hung` of `hung: no answer within 60 s`: causes add up only without their details."""
    return str(record.get("cause") or "unknown").split(":")[0].strip()
