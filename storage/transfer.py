"""From a mapped snapshot into a device's memory: in large asynchronous pieces, on several streams.

The memory of the mapping is page-locked when the device allows it, and then copied from directly. Where it doesn't (a
limit on locked memory, a container), pieces go through a ring of pinned buffers instead, smaller than any model.
Targets are tensors that exist already and keep their addresses, so that captured graphs stay valid.

Covers: the order of the work. Does not cover: the device (``cuda``, or ``fake_device`` where there is none) and where
the mapping comes from (``weights``). Needs torch and nothing else.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from storage.errors import CorruptSnapshotError, DeviceError
from storage.manifest import TensorEntry

PIECE_BYTES = 32 * 1024 * 1024
RING_BUFFERS = 4

Path = Literal["registered", "ring"]


class Device(Protocol):
    """A device with ``streams`` queues of copies. Every tensor is one-dimensional, of type uint8."""

    streams: int

    def register(self, memory: torch.Tensor) -> None:
        """Page-lock host memory for this process.

        Raises:
            DeviceError: it can't be locked; it is as before.
        """
        ...

    def unregister(self, memory: torch.Tensor) -> None:
        """Undo ``register``; no copy from it may be under way."""
        ...

    def pinned(self, size_bytes: int) -> torch.Tensor:
        """Return new page-locked host memory.

        Raises:
            DeviceError: there is none.
        """
        ...

    def copy(self, stream: int, source: torch.Tensor, target: torch.Tensor) -> None:
        """Queue a copy from locked host memory to the device; ``source`` must stay as it is until it is done."""
        ...

    def mark(self, stream: int) -> Any:
        """Return a mark behind everything that the stream has queued so far."""
        ...

    def wait(self, mark: Any) -> None:
        """Block until the stream has reached the mark.

        Raises:
            DeviceError: a copy failed.
        """
        ...


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: bytes ``start`` to ``end`` of the file, to ``offset`` in the tensor's own bytes."""

    tensor: str
    start: int
    end: int
    offset: int


@dataclass(frozen=True)
class TransferReport:
    """What a transfer did; ``path`` tells whether the memory could be locked."""

    path: Path
    size_bytes: int
    pieces: int
    took_s: float


def plan_pieces(entries: Iterable[TensorEntry], piece_bytes: int) -> list[Piece]:
    """Cut tensors into pieces of at most ``piece_bytes``, in the order they have in the file."""
    return [
        Piece(entry.name, start, min(start + piece_bytes, entry.end), start - entry.start)
        for entry in sorted(entries, key=lambda entry: entry.start)
        for start in range(entry.start, entry.end, piece_bytes)
    ]


class Transfer:
    """Copies one snapshot's file to a device, as often as it wakes. Not thread-safe."""

    def __init__(
        self,
        device: Device,
        memory: torch.Tensor,
        entries: Iterable[TensorEntry],
        *,
        piece_bytes: int = PIECE_BYTES,
        ring_buffers: int = RING_BUFFERS,
    ) -> None:
        """Locks ``memory``, the file's mapping as uint8: slow, so do it while nobody waits.

        Raises:
            DeviceError: neither can it be locked, nor is there memory for the ring.
        """
        self._device = device
        self._memory = memory
        self._entries = list(entries)
        self._pieces = plan_pieces(self._entries, piece_bytes)
        self._ring: list[torch.Tensor] = []
        self.path: Path = "registered"
        try:
            device.register(memory)
        except DeviceError:
            self.path = "ring"
            self._ring = [device.pinned(piece_bytes) for _ in range(ring_buffers)]

    def run(self, targets: Mapping[str, torch.Tensor]) -> TransferReport:
        """Fill the device's tensors and return when all of them are there.

        Args:
            targets: the device's tensors by name, contiguous, with the bytes of the snapshot's.

        Raises:
            CorruptSnapshotError: a target is missing, or is not what the snapshot holds; nothing was copied.
            DeviceError: a copy failed; the targets are undefined.
        """
        plain = {entry.name: self._target(entry, targets) for entry in self._entries}
        begin_s = time.perf_counter()
        (self._copy_directly if self.path == "registered" else self._copy_through_ring)(plain)
        took_s = time.perf_counter() - begin_s
        size_bytes = sum(piece.end - piece.start for piece in self._pieces)
        return TransferReport(self.path, size_bytes, len(self._pieces), took_s)

    def close(self) -> None:
        """Unlock the memory; the transfer can't be used afterwards."""
        if self.path == "registered":
            self._device.unregister(self._memory)
        self._ring.clear()

    def _copy_directly(self, targets: Mapping[str, torch.Tensor]) -> None:
        for number, piece in enumerate(self._pieces):
            stream = number % self._device.streams
            self._device.copy(stream, self._memory[piece.start : piece.end], _part(targets, piece))
        self._wait_for_all()

    def _copy_through_ring(self, targets: Mapping[str, torch.Tensor]) -> None:
        free_after: list[Any] = [None] * len(self._ring)
        for number, piece in enumerate(self._pieces):
            place, stream = number % len(self._ring), number % self._device.streams
            if free_after[place] is not None:
                self._device.wait(free_after[place])
            buffer = self._ring[place][: piece.end - piece.start]
            buffer.copy_(self._memory[piece.start : piece.end])
            self._device.copy(stream, buffer, _part(targets, piece))
            free_after[place] = self._device.mark(stream)
        self._wait_for_all()

    def _wait_for_all(self) -> None:
        for mark in [self._device.mark(stream) for stream in range(self._device.streams)]:
            self._device.wait(mark)

    @staticmethod
    def _target(entry: TensorEntry, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        target = targets.get(entry.name)
        if target is None or not target.is_contiguous() or target.nbytes != entry.end - entry.start:
            given = "nothing" if target is None else f"{target.nbytes} bytes, strides {target.stride()}"
            wanted = f"is {entry.end - entry.start} bytes in one piece, and the engine has {given}"
            raise CorruptSnapshotError(entry.file, entry.name, wanted)
        return target.detach().reshape(-1).view(torch.uint8)


def _part(targets: Mapping[str, torch.Tensor], piece: Piece) -> torch.Tensor:
    return targets[piece.tensor][piece.offset : piece.offset + piece.end - piece.start]
