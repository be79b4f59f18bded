"""The weights of a model on a device: filled from a snapshot, and what a sleep has to keep beside them.

A snapshot holds parameters and buffers by name. Asleep, a device's memory for weights is gone, and with it whatever
else lay there: tables that are no buffers, adapters' slots, a draft model. What is not the snapshot's is therefore told
by address, not by name (``KeptMemory``): all of that memory less the snapshot's tensors is copied to the host.

Covers: memory and names. Does not cover: sleeping and waking (``gpu_worker``), the copy (``storage.transfer``). Knows
torch, not vLLM. Not yet run on a GPU.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from deployments.snapshot_weights import entries_of, not_this_model
from storage.device_source import DeviceSource
from storage.transfer import Device, TransferReport
from storage.weights import dtype_of

logger = logging.getLogger(__name__)


class SourceOfProcess:
    """The one snapshot that this process has locked for its device; another one takes its place."""

    def __init__(self) -> None:
        self._source: DeviceSource | None = None

    def prepare(self, directory: Path, file: str, make_device: Callable[[], Device]) -> DeviceSource:
        """Return the source for a snapshot's file; what isn't the one from before begins to be locked.

        Raises:
            StorageError: its manifest can't be read.
        """
        path = directory / file
        if self._source is not None and self._source.path == path:
            return self._source
        entries = entries_of(directory, file)
        self.close()
        self._source = DeviceSource(path, entries, make_device)
        return self._source

    def close(self) -> None:
        """Unlock it."""
        source, self._source = self._source, None
        if source is not None:
            source.close()


# A process has one model and one device: locking memory is the process's business, and the loader begins it before
# there is a worker to ask.
_of_this_process = SourceOfProcess()


def source_for(directory: Path, file: str, device: torch.device) -> DeviceSource:
    """Return this process's source for a snapshot's file, being locked for ``device``, a CUDA device.

    Raises:
        StorageError: its manifest can't be read.
    """
    from storage.cuda import CudaDevice  # noqa: PLC0415 - only where there is one

    placed = on_device(device)
    return _of_this_process.prepare(directory, file, lambda: CudaDevice(placed))


def on_device(device: torch.device) -> torch.device:
    """Return the device with its number, this thread's where it has none; another thread would have another."""
    return device if device.index is not None else torch.device(device.type, torch.accelerator.current_device_index())


def release_source() -> None:
    """Unlock what this process has locked, if anything."""
    _of_this_process.close()


def check_weights(weights: Mapping[str, torch.Tensor], source: DeviceSource) -> None:
    """Check that a snapshot's file holds just these weights; one with several names needs to be there by one of them.

    Raises:
        CorruptSnapshotError: a tensor's name, shape or type is not the model's.
    """
    directory, file = source.path.parent, source.path.name
    filled = set()
    for entry in source.entries:
        weight = weights.get(entry.name)
        if weight is None or (weight.shape, weight.dtype) != (torch.Size(entry.shape), dtype_of(entry)):
            raise not_this_model(directory, file, entry.name)
        filled.add(weight.data_ptr())
    for name, weight in weights.items():
        if weight.data_ptr() not in filled:
            raise not_this_model(directory, file, name)


def fill(weights: Mapping[str, torch.Tensor], source: DeviceSource) -> TransferReport:
    """Copy a snapshot's file into weights that stay where they are.

    Raises:
        CorruptSnapshotError: it is not this model's; nothing was copied.
        DeviceError: a copy failed; the weights are undefined.
    """
    check_weights(weights, source)
    # Copies go to memory in one piece; whatever lies otherwise takes a detour on the device.
    scattered = {
        name: torch.empty_like(w, memory_format=torch.contiguous_format)
        for name, w in weights.items()
        if not w.is_contiguous()
    }
    report = source.fill({**weights, **scattered})
    for name, straight in scattered.items():
        weights[name].copy_(straight)
    logger.info(
        "%d bytes from %s in %.3f s, in %d pieces, host memory %s",
        report.size_bytes, source.path, report.took_s, report.pieces, report.path,
    )  # fmt: skip
    return report


class KeptMemory:
    """Host copies of parts of a device's memory, which is about to go and will come back at the same addresses."""

    def __init__(self, memory: Sequence[torch.Tensor], without: Iterable[torch.Tensor]) -> None:
        """Copies all of ``memory`` (uint8, one-dimensional) but the bytes of the tensors ``without``."""
        spans = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in without]
        self._parts = [part for block in memory for part in _outside(block, spans)]
        self._copies = [part.to("cpu", copy=True) for part in self._parts]

    @property
    def size_bytes(self) -> int:
        """What it takes of the host's memory."""
        return sum(copy.nbytes for copy in self._copies)

    def restore(self) -> None:
        """Put everything back."""
        for part, copy in zip(self._parts, self._copies, strict=True):
            part.copy_(copy)


def _outside(block: torch.Tensor, spans: Iterable[tuple[int, int]]) -> list[torch.Tensor]:
    """Return the parts of a block of memory that no span of addresses covers."""
    begin, end = block.data_ptr(), block.data_ptr() + block.nbytes
    parts, at = [], begin
    for span_begin, span_end in sorted(span for span in spans if span[0] < end and span[1] > begin):
        if span_begin > at:
            parts.append(block[at - begin : span_begin - begin])
        at = max(at, span_end)
    if at < end:
        parts.append(block[at - begin :])
    return parts
