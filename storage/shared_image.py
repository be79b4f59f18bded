"""One copy of something large in a device's memory, for all processes of a machine that read it.

Nobody keeps it for them. Memory that a device hands out as a file descriptor is there for as long as any process has it
mapped or holds the descriptor: the first process fills it, and whoever comes later gets the descriptor from one that
has it. It is gone with the last process that drops it or dies, however it dies. (Dynamo's GPU Memory Service holds such
memory in a server of its own.) A process that has it listens in a directory that is named for what the memory holds,
and a lock there lets one process at a time look for others, and fill where there is none.

Covers: one image as one process has it. Does not cover: the device (``cuda``), what is in it
(``deployments.shared_weights``). Needs the standard library and nothing else. Linux only.
"""

import contextlib
import fcntl
import hashlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from storage.errors import DeviceError

_ASK_S = 1.0
"""A process that does not answer for so long (it was stopped, say) is passed over."""


class DeviceMemory(Protocol):
    """Memory that other processes can map. Sizes are multiples of what ``rounded`` rounds to; all raise DeviceError."""

    name: str
    """Tells devices of a machine apart, in every process alike."""

    def rounded(self, size_bytes: int) -> int:
        """Return the size of memory that so much fits in."""
        ...

    def reserve(self, size_bytes: int) -> int:
        """Return an address from which on so many are this caller's, with nothing behind them."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """Return a file descriptor for new memory, which is there as long as it is open somewhere, or mapped."""
        ...

    def map(self, address: int, size_bytes: int, descriptor: int, *, writable: bool) -> None:
        """Put a descriptor's memory behind reserved addresses."""
        ...

    def unmap(self, address: int, size_bytes: int) -> None:
        """Take it away, once nothing computes with it any more; the addresses stay reserved."""
        ...


def images_directory() -> Path:
    """Return where processes of this user find each other.

    Raises:
        DeviceError: it is somebody else's.
    """
    directory = Path(tempfile.gettempdir(), f"fs-images-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise DeviceError("memory", f"{directory} must belong to this user, and be nobody else's to read")
    return directory


class SharedImage:
    """An image of ``size_bytes`` at an ``address`` that stays the same however often it is brought and dropped."""

    def __init__(self, memory: DeviceMemory, size_bytes: int) -> None:
        """Reserves addresses; brings nothing."""
        self._memory = memory
        self._size_bytes = memory.rounded(size_bytes)
        self._offer: _Offer | None = None
        self.address = memory.reserve(self._size_bytes)

    @property
    def mapped_bytes(self) -> int:
        """What is mapped now, by this process among others."""
        return 0 if self._offer is None else self._size_bytes

    def bring(self, key: str, fill: Callable[[], None], root: Path | None = None) -> bool:
        """Put the memory behind the addresses, to be read; return whether another process had it.

        Waits while another process brings the same. Where none has it, ``fill`` writes it, at ``address``; what it
        raises is passed on, and nothing was brought. ``key`` says what it holds: it is the same for two processes if
        and only if they would fill it alike. ``root`` is where processes find each other.

        Raises:
            DeviceError: the device has no such memory.
        """
        assert self._offer is None, "it is there already"  # noqa: S101 - a breach of the contract
        # Short, because a socket's path may have 107 bytes.
        named = hashlib.sha256(f"{self._memory.name} {key}".encode()).hexdigest()[:16]
        directory = (root or images_directory()) / named
        directory.mkdir(mode=0o700, exist_ok=True)
        with _alone(directory / "lock"):
            descriptor = _from_another(directory)
            came = descriptor is not None
            if descriptor is None:
                descriptor = self._memory.allocate(self._size_bytes)
            try:
                if not came:
                    self._filled(descriptor, fill)
                # Listening before the lock goes: who has it next finds this one.
                offer = _Offer(directory / f"{os.getpid()}-{self.address:x}.sock", descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            try:
                self._memory.map(self.address, self._size_bytes, descriptor, writable=False)
            except BaseException:
                offer.close()
                raise
            self._offer = offer
        return came

    def drop(self) -> None:
        """Let go of the memory, which nothing may compute with any more; with the last process's it is free."""
        if self._offer is not None:
            self._offer.close()
            self._offer = None
            self._memory.unmap(self.address, self._size_bytes)

    def _filled(self, descriptor: int, fill: Callable[[], None]) -> None:
        self._memory.map(self.address, self._size_bytes, descriptor, writable=True)
        try:
            fill()
        finally:
            self._memory.unmap(self.address, self._size_bytes)

    def __repr__(self) -> str:
        return (
            f"<SharedImage at {self.address:#x}, {self._size_bytes} bytes, {'there' if self._offer else 'not there'}>"
        )


class _Offer:
    """Gives the descriptor to each process that connects, and closes it in the end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        # Left by a process that had this one's number.
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, name="offer-image", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        # Closing alone would leave the thread waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        os.close(self._descriptor)

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            # Who asked may have gone.
            with line, contextlib.suppress(OSError):
                socket.send_fds(line, [b"i"], [self._descriptor])


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, if not before."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _from_another(directory: Path) -> int | None:
    """Return a descriptor from whichever process has the image; whoever calls holds the lock."""
    for path in sorted(directory.glob("*.sock")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(_ASK_S)
            try:
                line.connect(str(path))
                _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
            except ConnectionRefusedError:
                # It died; one that still comes would listen under the lock.
                path.unlink(missing_ok=True)
                continue
            except OSError:
                continue
            if descriptors:
                return descriptors[0]
    return None
