"""A device for machines without one: its memory is the host's, and its copies happen as late as they may.

A queued copy reads its source only when somebody waits for it. So a buffer that is used again too early gives wrong
bytes, as it would on a device, and every other breach of the contract is an assertion.
"""

from collections import deque
from dataclasses import dataclass

import torch

from storage.errors import DeviceError


@dataclass(frozen=True)
class FakeMark:
    """The number of copies that ``stream`` had been given when it was set."""

    stream: int
    count: int


class FakeDevice:
    """See ``transfer.Device``. Locks at most ``lockable_bytes`` of host memory; the copy ``fail_at`` fails, from 1."""

    def __init__(self, streams: int = 2, lockable_bytes: int | None = None, fail_at: int | None = None) -> None:
        self.streams = streams
        self.copied_bytes = 0
        self.registered: dict[int, int] = {}  # address → bytes
        self.pinned_bytes = 0
        self._lockable_bytes = lockable_bytes
        self._fail_at = fail_at
        self._pinned: list[torch.Tensor] = []
        self._queues: list[deque[tuple[torch.Tensor, torch.Tensor]]] = [deque() for _ in range(streams)]
        self._given = [0] * streams
        self._done = [0] * streams

    def register(self, memory: torch.Tensor) -> None:
        """See ``Device``."""
        if self._lockable_bytes is not None and memory.nbytes > self._lockable_bytes:
            raise DeviceError("fake", f"{memory.nbytes} bytes of host memory can't be locked")
        self.registered[memory.data_ptr()] = memory.nbytes

    def unregister(self, memory: torch.Tensor) -> None:
        """See ``Device``."""
        assert not any(self._queues), "a copy from it is under way"  # noqa: S101 - a breach of the contract
        del self.registered[memory.data_ptr()]

    def pinned(self, size_bytes: int) -> torch.Tensor:
        """See ``Device``."""
        buffer = torch.zeros(size_bytes, dtype=torch.uint8)
        self._pinned.append(buffer)
        self.pinned_bytes += size_bytes
        return buffer

    def copy(self, stream: int, source: torch.Tensor, target: torch.Tensor) -> None:
        """See ``Device``."""
        assert source.nbytes == target.nbytes  # noqa: S101
        assert self._is_locked(source), "the source is not locked"  # noqa: S101
        self._given[stream] += 1
        self._queues[stream].append((source, target))

    def mark(self, stream: int) -> FakeMark:
        """See ``Device``."""
        return FakeMark(stream, self._given[stream])

    def wait(self, mark: FakeMark) -> None:
        """See ``Device``: only what lies before the mark happens, and nothing of other streams."""
        while self._done[mark.stream] < mark.count:
            source, target = self._queues[mark.stream].popleft()
            self._done[mark.stream] += 1
            if sum(self._done) == self._fail_at:
                raise DeviceError("fake", "a copy failed")
            target.copy_(source)
            self.copied_bytes += source.nbytes

    def _is_locked(self, source: torch.Tensor) -> bool:
        begin, end = source.data_ptr(), source.data_ptr() + source.nbytes
        locked = [*self.registered.items(), *((buffer.data_ptr(), buffer.nbytes) for buffer in self._pinned)]
        return any(address <= begin and end <= address + size_bytes for address, size_bytes in locked)

    def __repr__(self) -> str:
        return f"<FakeDevice {self.streams} streams, {sum(self._given) - sum(self._done)} copies queued>"
