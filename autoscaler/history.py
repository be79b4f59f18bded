"""The arrival history: counts by series in SQLite, at four resolutions, each kept for its own time.

Covers: counts that come twice, late or from a clock that is wrong; gaps; what is forgotten; a file that is corrupt.
Does not cover: reading logs of others (``log_import``), who pushes counts.

Counts are rolled up as they come, in one transaction a push: what ``push`` has returned for survives a killed process.
Only buckets with requests have rows. Which buckets anybody counted in is kept beside them, so that a quiet hour and an
hour without a gateway are not the same.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from autoscaler.errors import HistoryError
from autoscaler.types import Count, Past

HOUR_S, DAY_S = 3600, 86400
RETENTION_S = {1: HOUR_S, 10: DAY_S, 60: 14 * DAY_S, 600: 400 * DAY_S}
"""How long buckets of each length are kept, in seconds."""
CLOCK_TOLERANCE_S = 300
"""Counts from further ahead are from a clock that is wrong."""
LOCK_WAIT_S = 5.0
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE series (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, seen_s INTEGER NOT NULL);
CREATE TABLE counts (
    bucket_s INTEGER, series INTEGER, bucket INTEGER, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (bucket_s, series, bucket)
) WITHOUT ROWID;
CREATE TABLE covered (bucket_s INTEGER, bucket INTEGER, PRIMARY KEY (bucket_s, bucket)) WITHOUT ROWID;
CREATE TABLE pushes (source TEXT PRIMARY KEY, number INTEGER NOT NULL, at_s INTEGER NOT NULL) WITHOUT ROWID;
"""


def history_file(snapshots: Path) -> Path:
    """Return where the history is: beside the disk tier of snapshots."""
    return snapshots.with_name(f"{snapshots.name}-arrivals") / "history.db"


@dataclass(frozen=True)
class Pushed:
    """What became of a push: how many counts were kept, and why the others were not."""

    kept: int
    duplicate: bool = False
    too_old: int = 0
    from_the_future: int = 0


class History:
    """The database. One writer; readers may open it at the same time.

    ``set_aside`` is where a corrupt file was moved when this one was opened, or None.
    """

    def __init__(self, path: Path, *, max_series: int = 20_000) -> None:
        """Open or create it. Raises HistoryError if that is impossible; a corrupt file is moved aside."""
        self._path = path
        self._max_series = max_series
        self._ids: dict[str, int] = {}
        self.set_aside: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._open()
        except OSError as error:
            raise HistoryError(str(path), str(error)) from error
        except sqlite3.OperationalError as error:
            raise HistoryError(str(path), str(error)) from error
        except sqlite3.DatabaseError:
            self.set_aside = self._move_aside()
            self._database = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<History {self._path}, {len(self.series())} series>"

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def push(
        self,
        counts: Iterable[Count],
        now_s: float,
        *,
        source: str = "",
        number: int | None = None,
        since_s: float | None = None,
    ) -> Pushed:
        """Add counts, all or none; a push without counts says that nothing arrived since ``since_s``, or just now.

        ``number`` grows with each push of ``source``; one that isn't higher than the last was here before. Several
        sources may count the same series in the same second: what they say is added.

        Raises:
            HistoryError: the file is locked, full or broken; nothing of this push is kept.
        """
        try:
            with self._database:
                if number is not None and not self._is_new(source, number, now_s):
                    return Pushed(0, duplicate=True)
                return self._add(list(counts), now_s, since_s)
        except (sqlite3.Error, OverflowError) as error:
            self._ids.clear()
            raise HistoryError(str(self._path), str(error)) from error

    def import_log(self, counts: Sequence[Count], now_s: float, *, source: str | None = None) -> Pushed:
        """Add a whole log: what it doesn't count between its ends did not arrive. Raises as ``push``.

        A log of the same ``source`` that was added within the last day is a duplicate.
        """
        if not counts:
            return Pushed(0)
        begin_s, end_s = min(count.at_s for count in counts), max(count.at_s for count in counts)
        try:
            with self._database:
                if source is not None and not self._is_new(source, 0, now_s):
                    return Pushed(0, duplicate=True)
                for bucket_s, kept_s in RETENTION_S.items():
                    low = int(max(begin_s, now_s - kept_s) // bucket_s)
                    buckets = range(low, int(min(end_s, now_s) // bucket_s) + 1)
                    self._database.executemany(
                        "INSERT OR IGNORE INTO covered VALUES (?, ?)", ((bucket_s, bucket) for bucket in buckets)
                    )
                return self._add(list(counts), now_s)
        except (sqlite3.Error, OverflowError) as error:
            self._ids.clear()
            raise HistoryError(str(self._path), str(error)) from error

    def read(self, series: Sequence[str], bucket_s: int, begin_s: float, end_s: float) -> Past:
        """Return the requests of ``series`` in buckets of ``bucket_s``; NaN where nobody counted, zero if unknown.

        Requests for an adapter (``model:adapter``) count for its model too.
        ``bucket_s`` is a multiple of a resolution; the coarsest that fits is read. Buckets that have not ended by
        ``end_s`` are left out. Raises HistoryError.
        """
        resolution_s = max((each for each in RETENTION_S if bucket_s % each == 0), default=1)
        first, last = int(begin_s // bucket_s), int(end_s // bucket_s)
        merged, buckets = bucket_s // resolution_s, max(0, last - first)
        counts = np.zeros((len(series), buckets * merged))
        low = first * merged
        rows = {name: row for row, name in enumerate(series)}
        try:
            covered = self._database.execute(
                "SELECT bucket FROM covered WHERE bucket_s = ? AND bucket >= ? AND bucket < ?",
                (resolution_s, low, last * merged),
            ).fetchall()
            found = self._database.execute(
                "SELECT name, bucket, requests FROM counts JOIN series ON series.id = series"
                " WHERE bucket_s = ? AND bucket >= ? AND bucket < ?",
                (resolution_s, low, last * merged),
            ).fetchall()
        except sqlite3.Error as error:
            raise HistoryError(str(self._path), str(error)) from error
        for name, bucket, requests in found:
            for row in {rows.get(name), rows.get(name.partition(":")[0])} - {None}:
                counts[row, bucket - low] += requests
        known = np.zeros(buckets * merged, bool)
        known[[bucket - low for (bucket,) in covered]] = True
        merged_counts = counts.reshape(len(series), buckets, merged).sum(axis=2)
        merged_counts[:, ~known.reshape(buckets, merged).any(axis=1)] = np.nan
        return Past(merged_counts, float(bucket_s), float(last * bucket_s))

    def series(self) -> tuple[str, ...]:
        """Return the names of all series, the one that was asked for last first. Raises HistoryError."""
        try:
            return tuple(name for (name,) in self._database.execute("SELECT name FROM series ORDER BY seen_s DESC, id"))
        except sqlite3.Error as error:
            raise HistoryError(str(self._path), str(error)) from error

    def rename(self, old: str, new: str) -> None:
        """Let ``new`` have the past of ``old``, added to its own. Raises HistoryError."""
        try:
            with self._database:
                source, target = self._id_of(old), self._id_of(new)
                self._database.execute(
                    "INSERT INTO counts SELECT bucket_s, ?, bucket, requests, tokens FROM counts WHERE series = ?"
                    " ON CONFLICT DO UPDATE SET requests = counts.requests + excluded.requests,"
                    " tokens = counts.tokens + excluded.tokens",
                    (target, source),
                )
                self._forget(source)
        except sqlite3.Error as error:
            raise HistoryError(str(self._path), str(error)) from error
        finally:
            self._ids.clear()

    def prune(self, now_s: float) -> None:
        """Forget what is older than its resolution is kept, and the series asked for longest ago if too many.

        Raises HistoryError.
        """
        try:
            with self._database:
                for bucket_s, kept_s in RETENTION_S.items():
                    oldest = int((now_s - kept_s) // bucket_s)
                    for table in ("counts", "covered"):
                        self._database.execute(
                            f"DELETE FROM {table} WHERE bucket_s = ? AND bucket < ?",  # noqa: S608 - our own names
                            (bucket_s, oldest),
                        )
                surplus = self._database.execute(
                    "SELECT id FROM series ORDER BY seen_s DESC, id LIMIT -1 OFFSET ?", (self._max_series,)
                ).fetchall()
                for (series,) in surplus:
                    self._forget(series)
                self._database.execute("DELETE FROM pushes WHERE at_s < ?", (int(now_s - DAY_S),))
            self._ids.clear()
        except sqlite3.Error as error:
            raise HistoryError(str(self._path), str(error)) from error

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=LOCK_WAIT_S, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # With a write-ahead log this loses nothing when the process is killed, and the last pushes with the power.
            database.execute("PRAGMA synchronous = NORMAL")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA_VERSION):
                reason = f"it is of version {version}, this is version {SCHEMA_VERSION}"
                raise HistoryError(str(self._path), reason)  # noqa: TRY301 - closes the file below
            if version == 0:
                database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("corrupt")  # noqa: TRY301 - as SQLite says it elsewhere
        except BaseException:
            # Whatever ends it: an open file could not be moved aside.
            database.close()
            raise
        return database

    def _move_aside(self) -> Path:
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.corrupt-{number}")).exists():
            number += 1
        try:
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            raise HistoryError(str(self._path), f"it is corrupt and can't be moved aside: {error}") from error
        return aside

    def _is_new(self, source: str, number: int, now_s: float) -> bool:
        changed = self._database.execute(
            "INSERT INTO pushes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET number = excluded.number, at_s ="
            " excluded.at_s WHERE excluded.number > pushes.number",
            (source, number, int(now_s)),
        )
        return changed.rowcount > 0

    def _add(self, counts: list[Count], now_s: float, since_s: float | None = None) -> Pushed:
        oldest_s, newest_s = now_s - max(RETENTION_S.values()), now_s + CLOCK_TOLERANCE_S
        usable = [count for count in counts if oldest_s <= count.at_s <= newest_s]
        rows: list[tuple[int, int, int, int, int]] = []
        covered: set[tuple[int, int]] = set()
        for bucket_s, kept_s in RETENTION_S.items():
            # Whoever pushes has counted up to now.
            first_s = max(now_s - HOUR_S, min(now_s, since_s)) if since_s is not None else now_s
            covered.update((bucket_s, each) for each in range(int(first_s // bucket_s), int(now_s // bucket_s) + 1))
            for count in usable:
                if count.at_s >= now_s - kept_s:
                    bucket = int(count.at_s // bucket_s)
                    covered.add((bucket_s, bucket))
                    rows.append((bucket_s, self._id_of(count.series, now_s), bucket, count.requests, count.tokens))
        self._database.executemany("INSERT OR IGNORE INTO covered VALUES (?, ?)", covered)
        self._database.executemany(
            "INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " requests = requests + excluded.requests, tokens = tokens + excluded.tokens",
            rows,
        )
        self._database.executemany(
            "UPDATE series SET seen_s = max(seen_s, ?) WHERE id = ?",
            {(int(count.at_s), self._id_of(count.series)) for count in usable},
        )
        return Pushed(
            len(usable),
            too_old=sum(count.at_s < oldest_s for count in counts),
            from_the_future=sum(count.at_s > newest_s for count in counts),
        )

    def _id_of(self, name: str, seen_s: float = 0) -> int:
        if name not in self._ids:
            self._database.execute("INSERT OR IGNORE INTO series (name, seen_s) VALUES (?, ?)", (name, int(seen_s)))
            (self._ids[name],) = self._database.execute("SELECT id FROM series WHERE name = ?", (name,)).fetchone()
        return self._ids[name]

    def _forget(self, series: int) -> None:
        self._database.execute("DELETE FROM counts WHERE series = ?", (series,))
        self._database.execute("DELETE FROM series WHERE id = ?", (series,))
