"""Leases: the right to use a snapshot's files, as a file that its holder keeps locked.

The kernel gives the lock back when the holder ends, however it ends, and still knows of it when the store has just been
started again: so neither side needs the other to be alive, or a clock, for the truth about what is in use.

    root/.leases/<snapshot id>.<tier, or any>.<random>    locked while its holder lives; holds the owner's name
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage.partial import DirectoryLock, TierName
from storage.tier import Place

LEASES_NAME = ".leases"
_ANY: Literal["any"] = "any"


@dataclass(frozen=True)
class HeldLease:
    """A lease as others see it; without a ``tier`` it holds the snapshot wherever it is."""

    snapshot_id: str
    tier: TierName | None
    owner: str

    def holds(self, snapshot_id: str, tier: TierName) -> bool:
        """Tell whether a snapshot must stay in a tier because of it."""
        return self.snapshot_id == snapshot_id and self.tier in {None, tier}


class Lease:
    """A lease of this process's. It is taken before the snapshot is asked for, so that nothing comes in between."""

    def __init__(self, root: Path, snapshot_id: str, owner: str) -> None:
        """Take a lease on a snapshot below ``root``, which needn't be there yet."""
        self.snapshot_id = snapshot_id
        self._directory = root / LEASES_NAME
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._random = secrets.token_hex(8)
        self._path = self._named(_ANY)
        # Under the lock of those who look for dead holders: this one must not be taken for dead before it is locked.
        with DirectoryLock(self._directory, wait=True):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        os.write(self._descriptor, owner.encode())

    def narrow(self, tier: TierName) -> None:
        """Hold the snapshot in ``tier`` only: its copies elsewhere may go."""
        path = self._named(tier)
        self._path.rename(path)
        self._path = path

    def release(self) -> None:
        """Give it back; harmless when it was."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _named(self, tier: TierName | Literal["any"]) -> Path:
        return self._directory / f"{self.snapshot_id}.{tier}.{self._random}"

    def __repr__(self) -> str:
        return f"<Lease on {self.snapshot_id}{'' if self._descriptor >= 0 else ', released'}>"


async def hold(lease: Lease, acquiring: Awaitable[Place]) -> Place:
    """Await where a leased snapshot is, and hold it there; when it can't be had, the lease is given back."""
    try:
        place = await acquiring
    except BaseException:
        lease.release()
        raise
    lease.narrow(place.tier)
    return place


def held_leases(root: Path) -> list[HeldLease]:
    """Return the leases below ``root`` whose holders live, and remove the others."""
    directory = root / LEASES_NAME
    if not directory.is_dir():
        return []
    with DirectoryLock(directory, wait=True):
        return list(_living(path for path in directory.iterdir() if not path.name.startswith(".")))


def _living(paths: Iterable[Path]) -> Iterable[HeldLease]:
    for path in sorted(paths):
        # Its holder may release or rename it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                snapshot_id, tier, _ = path.name.split(".")
                if _is_locked(descriptor):
                    named: TierName | None = None if tier == _ANY else "dram" if tier == "dram" else "disk"
                    yield HeldLease(snapshot_id, named, os.read(descriptor, 4096).decode(errors="replace"))
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
