"""Files in one place, read by ranges: what a snapshot or a checkpoint is copied from.

Covers: the protocol of such places and the one that is a directory. Others: ``s3``, ``hub``; ``remote`` chooses by URL.
"""

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.disk_read import open_ranges
from storage.errors import RemoteChangedError, RemoteDeniedError, RemoteError, RemoteMissingError

_PIECE_BYTES = 1024 * 1024

# Of a range, in order; to be closed by who stops before the end.
Pieces = Generator[memoryview, None, None]


@dataclass(frozen=True)
class FileInfo:
    """A file as it was when it was listed; ``version`` changes when its content does (an ETag, a blob's id)."""

    path: str
    size_bytes: int
    version: str


class Folder(Protocol):
    """Files below ``url``, by their relative paths with ``/``. Blocking, safe to use from many threads."""

    url: str

    def list_files(self) -> list[FileInfo]:
        """Return every file, sorted by path.

        Raises:
            RemoteError: it can't be listed; RemoteMissingError if there is nothing.
        """
        ...

    def read_pieces(self, file: FileInfo, start: int, end: int, buffer: memoryview) -> Pieces:
        """Yield the bytes of ``file`` from ``start`` to before ``end``, in order and in pieces.

        Small ones, so that who checks and writes them finds them in the processor's cache. A piece may lie in
        ``buffer``, and is only good until the next one.

        Raises:
            RemoteChangedError: it is not the version that was listed.
            RemoteError: it can't be read, or ends too early.
        """
        ...

    def write(self, path: str, source: Path) -> None:
        """Store the file at ``source`` as ``path``, all or nothing.

        Raises:
            RemoteError: it could not be stored.
        """
        ...

    def __repr__(self) -> str:
        """Name the place."""
        ...


def read_into(folder: Folder, file: FileInfo, start: int, out: memoryview) -> None:
    """Fill ``out`` with the bytes of ``file`` from ``start`` on. Raises as ``Folder.read_pieces``."""
    buffer = memoryview(bytearray(max(1, min(len(out), _PIECE_BYTES))))
    done = 0
    with closing(folder.read_pieces(file, start, start + len(out), buffer)) as pieces:
        for piece in pieces:
            out[done : done + len(piece)] = piece
            done += len(piece)


def read_whole(folder: Folder, file: FileInfo) -> bytes:
    """Return a small file. Raises as ``Folder.read_pieces``."""
    content = bytearray(file.size_bytes)
    read_into(folder, file, 0, memoryview(content))
    return bytes(content)


class DirectoryFolder:
    """A directory of this machine, or of a network file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root)

    def list_files(self) -> list[FileInfo]:
        """See ``Folder``. Hidden files and directories are left out; a link that leaves the directory is refused."""
        if not self._root.is_dir():
            raise RemoteMissingError(self.url, "there is no such directory")
        files = []
        for directory, directories, names in os.walk(self._root, onerror=self._raise):
            directories[:] = sorted(name for name in directories if not name.startswith("."))
            for name in (*names, *directories):
                self._check_link(Path(directory, name))
            for name in names:
                if not name.startswith("."):
                    path = Path(directory, name)
                    files.append(self._info(path.relative_to(self._root).as_posix(), path.stat()))
        return sorted(files, key=lambda file: file.path)

    def read_pieces(self, file: FileInfo, start: int, end: int, buffer: memoryview) -> Pieces:
        """See ``Folder``."""
        try:
            with open_ranges(self._root / file.path) as ranges:
                if self._info(file.path, os.fstat(ranges.descriptor)) != file:
                    raise RemoteChangedError(self._where(file.path), "it changed while it was read")
                for at in range(start, end, len(buffer)):
                    piece = buffer[: min(len(buffer), end - at)]
                    if ranges.read(at, piece) < len(piece):
                        raise RemoteChangedError(self._where(file.path), f"it ends before byte {end}")
                    yield piece
        except OSError as error:
            raise self._translated(error, file.path) from error

    def write(self, path: str, source: Path) -> None:
        """See ``Folder``."""
        target = self._root / path
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            raise self._translated(error, path) from error
        finally:
            partial.unlink(missing_ok=True)

    def _check_link(self, path: Path) -> None:
        if path.is_symlink() and not path.resolve().is_relative_to(self._root.resolve()):
            raise RemoteError(str(path), "it is a link that leaves its directory")

    @staticmethod
    def _info(path: str, status: os.stat_result) -> FileInfo:
        return FileInfo(path, status.st_size, f"{status.st_ino}-{status.st_mtime_ns}")

    def _where(self, path: str) -> str:
        return str(self._root / path)

    def _raise(self, error: OSError) -> None:
        raise self._translated(error, "") from error

    def _translated(self, error: OSError, path: str) -> RemoteError:
        where, reason = self._where(path), error.strerror or str(error)
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return RemoteMissingError(where, reason)
        if error.errno in {errno.EACCES, errno.EPERM}:
            return RemoteDeniedError(where, reason)
        return RemoteError(where, reason)

    def __repr__(self) -> str:
        return f"<DirectoryFolder {self._root}>"
