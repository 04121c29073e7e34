"""The one file of a sweep's results: an SQLite database with a row per cell and a row per episode.

Only the driver of a sweep writes, one transaction per cell, so a sweep that is killed keeps every finished cell and
none by halves. Cells are named by the hash of what determines their outcome: nothing is measured twice.
"""

import errno
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

FORMAT = 1
COLUMNS = ("episode", "task", "seed", "success", "valid", "length", "reward", "cause")
TABLES = """
create table if not exists meta (name text primary key, value text not null);
create table if not exists cells (
  key text primary key, content text not null, finished real not null, wall_s real not null, episodes integer not null,
  error text not null, summary text not null);
create table if not exists episodes (
  key text not null references cells(key), episode integer not null, task text not null, seed integer not null,
  success integer not null, valid integer not null, length integer not null, reward real, cause text not null,
  primary key (key, episode));
"""


class Store:
    """Opens or makes the database. Raises ValueError if the file is something else, or of a newer version."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._db = sqlite3.connect(path)
        try:
            with self._db:
                self._db.executescript(TABLES)
                self._db.execute("insert or ignore into meta values ('format', ?)", (str(FORMAT),))
            found = int(self.meta("format"))
        except (sqlite3.DatabaseError, ValueError) as e:
            self._db.close()
            raise ValueError(f"{path} is not a sweep's results ({e}); move it away, or choose another out=") from e
        if found > FORMAT:
            self._db.close()
            raise ValueError(f"{path} has format {found}, this version reads up to {FORMAT}; update the code")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._db.close()

    def meta(self, name: str) -> str:
        """A remembered word; "" if there is none."""
        row = self._db.execute("select value from meta where name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def remember(self, **words: str) -> None:
        """Keep words about the sweep, such as its command."""
        with self._db:
            self._db.executemany("insert or replace into meta values (?, ?)", list(words.items()))

    def finished(self) -> set[str]:
        """Keys of the cells that are there; those that failed are not."""
        return {str(k) for (k,) in self._db.execute("select key from cells where error = ''")}

    def failed(self) -> dict[str, str]:
        """Keys of the cells whose last attempt failed as a whole -> why."""
        return {str(k): str(e) for k, e in self._db.execute("select key, error from cells where error != ''")}

    def put(
        self,
        key: str,
        content: Mapping[str, Any],
        records: Iterable[Mapping[str, Any]],
        *,
        wall_s: float,
        summary: Mapping[str, Any],
        error: str = "",
    ) -> None:
        """Add a cell with its episodes, or replace it, in one transaction. Raises OSError if the disk is full."""
        rows = [(key, *(r[c] for c in COLUMNS)) for r in records]
        cell = (key, json.dumps(content, sort_keys=True), time.time(), wall_s, len(rows), error, json.dumps(summary))
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        try:
            with self._db:
                self._db.execute("delete from episodes where key = ?", (key,))
                self._db.execute("insert or replace into cells values (?, ?, ?, ?, ?, ?, ?)", cell)
                self._db.executemany(f"insert into episodes values ({marks})", rows)
        except sqlite3.OperationalError as e:
            if "full" not in str(e):
                raise
            text = f"the disk of {self.path} is full ({e}); free some of it and give the same command again"
            raise OSError(errno.ENOSPC, f"{text}: finished cells are kept") from e

    def episodes(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """The episodes of some cells, in the order of the keys and of the plan."""
        query = f"select {', '.join(COLUMNS)} from episodes where key = ? order by episode"
        found: list[dict[str, Any]] = []
        for key in keys:
            for row in self._db.execute(query, (key,)):
                record = dict(zip(COLUMNS, row, strict=True)) | {"key": key}
                found.append(record | {"success": bool(record["success"]), "valid": bool(record["valid"])})
        return found

    def wall_s(self, keys: Sequence[str]) -> float:
        """Seconds that the cells took, one after another."""
        return sum(float(s) for k in keys for (s,) in self._db.execute("select wall_s from cells where key = ?", (k,)))
