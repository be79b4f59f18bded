"""Which requests an engine was computing when it ended: its core writes that down, its front end reads it afterwards.

A request that ends engines has to be told from one that only waited in them. The last two batches are kept, for an
asynchronous scheduler decides on one while the one before is computed. It is a file because it has to outlive its
writer, whatever that died of; a batch of the usual size is one write to the page cache, and only when it changes.
Both ends have it open from the start, for the pool's directory may go while its engines go on. Engines without a
process pool have none: whoever was in their hands is suspected.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_VARIABLE = "FLASHSERVE_BATCH_RECORD"


def record_path(directory: Path, process_id: int) -> Path:
    """Return the record of the engine whose processes are below this one."""
    return directory / f"batch-{process_id}"


def keep_record(path: Path) -> None:
    """Have the engine core that this process will fork keep a record there. Raises OSError."""
    os.environ[_VARIABLE] = str(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))


class BatchRecord:
    """The writer; does nothing where nobody wants a record."""

    def __init__(self) -> None:
        self._latest: frozenset[str] = frozenset()
        self._written: frozenset[str] = frozenset()
        self._file = int(os.environ.get(_VARIABLE, "-1"))

    def computing(self, request_ids: Iterable[str]) -> None:
        """Take note, before the batch is computed."""
        if self._file < 0:
            return
        batch = frozenset(request_ids)
        both, self._latest = batch | self._latest, batch
        if both != self._written:
            # What is left of a longer one is behind the empty line.
            os.pwrite(self._file, ("\n".join(both) + "\n\n").encode(), 0)
            self._written = both


def open_record(path: Path) -> BinaryIO | None:
    """Return the record at ``path`` to read from, which the caller closes; None if there is none."""
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        return None


def read_record(record: BinaryIO | None) -> frozenset[str] | None:
    """Return vLLM's ids of the requests that an engine was computing last; None if it kept no record."""
    if record is None:
        return None
    record.seek(0)
    return frozenset(record.read().decode().partition("\n\n")[0].split())


def was_computing(record: frozenset[str] | None, stream_id: str) -> bool:
    """Tell whether a request may have been in work; vLLM adds characters of its own to the id it was given."""
    return record is None or any(stream_id in {each, each.rpartition("-")[0]} for each in record)
