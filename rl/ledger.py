"""An append-only account of a run: episodes, failures, restarts and cost, one JSON line each.

Several processes may append to one file: each record is a single `write` to a file opened with O_APPEND, which Linux
keeps whole for local files. A run that was killed may leave a torn last line; readers skip it and writers start a new
line after it.
"""

import contextlib
import errno
import fcntl
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
    """What a ledger adds up to: started = finished + failed + in_flight, and device_s = busy_s + idle_s + lost_s."""

    started: int
    finished: int
    failed: int
    in_flight: int
    restarts: Mapping[str, int]  # cause -> count
    env_steps: int  # of the episodes that ended
    unlearned_steps: int = 0  # collected, but what was learned of them is lost
    busy_s: float = 0.0  # seconds of workers and learners: at work of which something remains
    idle_s: float = 0.0  # waiting
    lost_s: float = 0.0  # gone, starting again, or at work of which nothing remains
    device_s: float = 0.0  # wall-clock times devices
    abandoned: int = 0  # rounds after the checkpoint that a later run went on from

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
            raise OSError(errno.ENOSPC, "only a part of a record could be written", str(self.path))
        if self.fsync:
            self.sync()

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Let no second process continue the same run: both would write its checkpoints. Raises ValueError if one does."""
    with (out / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.seek(0)
            pid = file.read().strip() or "?"
            raise ValueError(
                f"process {pid} is at work on {out}; wait for its end. If it hangs, `kill -9 {pid}` and give this "
                "command again"
            ) from e
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


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


def renewed(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row per iteration: a run that went on from an older checkpoint did some again, and the last time counts."""
    kept: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        i = int(row["iteration"])
        while kept and next(reversed(kept)) >= i:
            kept.popitem()
        kept[i] = row
    return list(kept.values())


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

    def carry(self, worker: int, count: int) -> None:
        """Take note of episodes that a resumed run goes on with."""
        self._counts[worker] = count

    def lost(self, worker: int) -> int:
        """How many episodes the loss of this worker ended."""
        return self._counts.pop(worker, 0)


def surviving(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """(record, whether what it says still counts), oldest first.

    `resumed` at an `iteration` ends the account of all later rounds before it: the checkpoint knows nothing of them,
    and they are done again.
    """
    kept = [(r, True) for r in records]
    cuts: list[tuple[int, int]] = []  # (place, iteration) of every `resumed`
    for place, (r, _) in enumerate(kept):
        if r.get("event") == "resumed" and "iteration" in r:
            cuts.append((place, int(r["iteration"])))
    first = math.inf  # the least iteration that a later record resumes from
    cuts.reverse()
    for place in range(len(kept) - 1, -1, -1):
        while cuts and cuts[0][0] > place:
            first = min(first, cuts.pop(0)[1])
        r = kept[place][0]
        if int(r.get("iteration", -1)) > first:
            kept[place] = (r, False)
    return iter(kept)


def account(records: Iterable[Mapping[str, Any]]) -> Account:
    """Add up records.

    `started` may carry `count`. An `episode` is finished, or failed if it says `valid: false`; its `cause` is then that
    of the simulator's restart. Events named `*_restart` are restarts of workers; the episodes that one ended (`lost`)
    are failed. A resumed run writes `resumed`: of the episodes in flight at its checkpoint it goes on with `carried`,
    the others count as failed, and so do all that were started after the checkpoint. A ledger without any `started`
    knows of none in flight. Any record may carry `unlearned_steps`, and seconds: `busy_s`, `idle_s`, `lost_s`,
    `device_s`.
    """
    started = finished = failed = steps = unlearned = dropped = 0
    seconds = dict.fromkeys(("busy_s", "idle_s", "lost_s", "device_s"), 0.0)
    told = False
    restarts: Counter[str] = Counter()
    abandoned: set[tuple[int, int]] = set()  # (life, iteration)
    life = 0
    for r, counts in surviving(records):
        event, count = str(r.get("event")), int(r.get("count", 1))
        unlearned += int(r.get("unlearned_steps") or 0)
        for k in seconds:
            seconds[k if counts or k == "device_s" else "lost_s"] += float(r.get(k) or 0.0)
        if event == "started":
            told = True
            if counts:
                started += count
            else:
                dropped += count
        elif event == "episode":
            if not r.get("valid", True):
                restarts[_kind(r)] += 1
            if counts:
                steps += int(r.get("length", 0))
                finished, failed = finished + bool(r.get("valid", True)), failed + (not r.get("valid", True))
        elif event == "resumed":
            life += 1
            if told and counts:
                failed = max(failed, started - finished - int(r.get("carried", 0)))
            started = started if told else finished + failed  # what happened before the first `started` was not told
        elif event.endswith("_restart"):
            failed += int(r.get("lost", 0)) if counts else 0
            restarts[f"{event.removesuffix('_restart')} {_kind(r)}"] += count
        elif event == "iteration" and not counts:
            abandoned.add((life, int(r["iteration"])))
    started = (started if told else finished + failed) + dropped
    failed += dropped
    in_flight = started - finished - failed
    return Account(
        started, finished, failed, in_flight, dict(restarts), steps, unlearned, abandoned=len(abandoned), **seconds
    )


def cost_per_point(total: Account, before: float, after: float) -> float | None:
    """Device seconds per percentage point of success (fractions in) that was gained; None if nothing was."""
    return total.device_s / (100 * (after - before)) if after > before else None


def _kind(record: Mapping[str, Any]) -> str:
    """`hung` of `hung: no answer within 60 s`: causes add up only without their details."""
    return str(record.get("cause") or "unknown").split(":")[0].strip()
