"""A snapshot's file as the source of a device's weights, locked in the background.

Page-locking holds for one process and takes longer than the copy itself, so whoever will need the weights says so
early (``DeviceSource``), and finds the memory locked when it needs them (``fill``). Covers: one file of one snapshot.
Does not cover: the copy (``transfer``), the device (``cuda``). Needs torch and nothing else.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from storage.errors import CorruptSnapshotError
from storage.manifest import TensorEntry
from storage.transfer import Device, Transfer, TransferReport
from storage.weights import map_file


class DeviceSource:
    """The file at ``path`` with the tensors in ``entries``, for the device that ``make_device`` makes."""

    def __init__(self, path: Path, entries: Iterable[TensorEntry], make_device: Callable[[], Device]) -> None:
        """Begins to lock the file's mapping; what fails there is raised by ``fill``."""
        self.path = path
        self.entries = tuple(entries)
        self._make_device = make_device
        threads = ThreadPoolExecutor(1, "lock-snapshot")
        self._transfer = threads.submit(self._lock)
        threads.shutdown(wait=False)

    def ready(self) -> bool:
        """Tell whether ``fill`` would begin to copy at once."""
        return self._transfer.done()

    def fill(self, targets: Mapping[str, torch.Tensor]) -> TransferReport:
        """Copy the file's tensors into ``targets``, once it is locked. Raises as ``Transfer`` and ``Transfer.run``."""
        return self._transfer.result().run(targets)

    def close(self) -> None:
        """Unlock the memory and let go of the mapping; the source can't be used afterwards."""
        if self._transfer.exception() is None:
            self._transfer.result().close()

    def _lock(self) -> Transfer:
        memory = map_file(self.path, shared=True)
        if any(entry.end > memory.nbytes for entry in self.entries):
            raise CorruptSnapshotError(str(self.path.parent), self.path.name, f"ends after {memory.nbytes} bytes")
        return Transfer(self._make_device(), memory, self.entries)

    def __repr__(self) -> str:
        return f"<DeviceSource {self.path}, {'ready' if self.ready() else 'being locked'}>"
