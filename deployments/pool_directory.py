"""Where a process pool lies in the file system: a directory for its sockets, and the link by which it is found.

Covers: one directory a pool, held by a lock for as long as its owner lives, so that the next owner removes what those
have left that were killed together with their zygotes. Does not cover: what is put there (``process_pool``).
"""

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

# Of its own, because only whoever may open it can connect, and short, because a socket's path must be.
_PARENT, _PREFIX = Path("/tmp"), "fs-pool-"  # noqa: S108 - only what is made there unpredictably is used
_LOCK = "owner"


class PoolDirectory:
    """The directory of one pool, until ``remove`` or the end of this process; it is made when this is constructed."""

    def __init__(self) -> None:
        """Raise OSError when there can't be one."""
        _remove_forsaken()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PARENT))
        # Others look for it by its last name, which it gets once it is locked.
        unlocked = self.path / f"{_LOCK}.new"
        self._lock = unlocked.open("xb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.path / _LOCK)

    def show(self, link: Path) -> None:
        """Have ``link`` lead here. Raises OSError."""
        link.parent.mkdir(mode=0o700, exist_ok=True)
        for each in link.parent.iterdir():
            # This node's before, and those of pools whose owners were killed.
            if each == link or not each.exists():
                each.unlink(missing_ok=True)
        link.symlink_to(self.path)

    def hide(self, link: Path | None) -> None:
        """Remove ``link``, unless another pool has taken it meanwhile."""
        with suppress(OSError):
            if link is not None and link.readlink() == self.path:
                link.unlink()

    def remove(self) -> None:
        """Remove it with what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def __repr__(self) -> str:
        return f"<PoolDirectory {self.path}>"


def _remove_forsaken() -> None:
    for lock in _PARENT.glob(f"{_PREFIX}*/{_LOCK}"):
        # Somebody else's, or just removed by its owner, or held by it.
        with suppress(OSError), lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
