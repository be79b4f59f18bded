"""Weights on a device that the engines of a model compute from together: everybody's, and tenants' own.

All of a snapshot's tensors lie in one image (``storage.shared_image``), which the first engine fills from host memory
and others map, to read: nobody's engine can change what another's computes with. The model's parameters are views of
it, at addresses that stay the same over sleeps, as captured graphs want them. Buffers are each engine's own, because
vLLM writes to them when it wakes. (A backbone shared by isolated functions: ServerlessLoRA, section 4.)

Covers: one model in one process. Does not cover: a CPU, where the mapped snapshot itself is shared (``cpu_weights``).
Knows torch, not vLLM. Not yet run on a GPU.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from deployments.device_weights import check_weights, on_device
from deployments.snapshot_weights import entries_of, not_this_model, weights_of
from storage.device_source import DeviceSource
from storage.errors import DeviceError
from storage.manifest import MANIFEST_NAME, TensorEntry
from storage.shared_image import DeviceMemory, SharedImage
from storage.transfer import TransferReport
from storage.weights import dtype_of

logger = logging.getLogger(__name__)

_ALIGNED_BYTES = 256
"""As CUDA's own allocations begin: kernels read several elements at once."""

Layout = tuple[tuple[str, tuple[int, ...], torch.dtype, int], ...]
"""Name, shape and type of each tensor, and the byte where it begins."""


class SharedWeights:
    """The tensors of a snapshot's file in an image that is there while it is brought; ``tensors`` are views of it."""

    def __init__(
        self,
        directory: Path,
        file: str,
        memory: DeviceMemory,
        bytes_at: Callable[[int, int], torch.Tensor],
        root: Path | None = None,
    ) -> None:
        """Reserves addresses. ``bytes_at`` returns memory by address and size, as uint8; ``root``: see ``bring``.

        Raises:
            StorageError: the snapshot's manifest can't be read.
            DeviceError: the device has no memory that can be shared.
        """
        self._layout, size_bytes = lay_out(entries_of(directory, file))
        self._file, self._root = file, root
        self._image = SharedImage(memory, max(size_bytes, 1))
        self.tensors = {
            name: bytes_at(self._image.address + begin, _nbytes(shape, dtype)).view(dtype).view(shape)
            for name, shape, dtype, begin in self._layout
        }

    @property
    def mapped_bytes(self) -> int:
        """What they take of the device while they are there, once for all engines that have them."""
        return self._image.mapped_bytes

    def bring(self, directory: Path, source: Callable[[], DeviceSource]) -> TransferReport | None:
        """Have the tensors there, those of another process or else copied from ``source``: what was copied, if it was.

        Raises:
            CorruptSnapshotError: the snapshot is not of the model that it was.
            DeviceError: there is no memory for it, or a copy failed; nothing was brought.
        """
        layout, _ = lay_out(entries_of(directory, self._file))
        if differing := set(layout) ^ set(self._layout):
            raise not_this_model(directory, self._file, min(differing)[0])
        # What a wake has brought that went no further.
        self._image.drop()
        reports: list[TransferReport] = []

        def fill() -> None:
            reports.append(source().fill(self.tensors))

        key = hashlib.sha256((directory / MANIFEST_NAME).read_bytes() + self._file.encode()).hexdigest()[:32]
        if self._image.bring(key, fill, self._root):
            logger.info("the weights of %s are another engine's", directory)
        return reports[0] if reports else None

    def drop(self) -> None:
        """Let go of them; the last engine's are gone."""
        self._image.drop()

    def give(self, model: nn.Module) -> None:
        """Make the parameters of a model, as it was loaded, views of the tensors, and fill its buffers from them."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers = dict(model.named_buffers(remove_duplicate=False))
        for name, tensor in self.tensors.items():
            if name in parameters:
                parameters[name].data = tensor
            else:
                buffers[name].copy_(tensor)


def lay_out(entries: Iterable[TensorEntry]) -> tuple[Layout, int]:
    """Return where each tensor lies, which depends on nothing but what tensors there are, and the bytes in all."""
    placed, end = [], 0
    for entry in sorted(entries, key=lambda entry: entry.name):
        dtype, shape = dtype_of(entry), tuple(entry.shape)
        begin = -(-end // _ALIGNED_BYTES) * _ALIGNED_BYTES
        placed.append((entry.name, shape, dtype, begin))
        end = begin + _nbytes(shape, dtype)
    return tuple(placed), end


def unshareable(model: nn.Module, device: torch.device) -> str | None:
    """Return why a model, as it was made, can't have its weights from an image on ``device``; None if it can."""
    from storage.cuda import CudaMemory  # noqa: PLC0415 - only where there is one

    # In the image each lies in one piece.
    if name := next((name for name, weight in weights_of(model).items() if not weight.is_contiguous()), None):
        return f"'{name}' lies in several pieces"
    try:
        CudaMemory(on_device(device))
    except DeviceError as error:
        return str(error)
    return None


# A process has one model and one device.
_of_this_process: list[SharedWeights] = []


def share(model: nn.Module, source: DeviceSource, device: torch.device) -> TransferReport | None:
    """Give a model that was just made the weights that other engines on ``device`` have, or begin with them.

    Returns what was copied, if it was.

    Raises:
        CorruptSnapshotError: the snapshot is not this model's.
        DeviceError: the device has too little memory, or a copy failed.
    """
    from storage.cuda import CudaMemory, memory_at  # noqa: PLC0415 - only where there is one

    placed = on_device(device)
    check_weights(weights_of(model), source)
    directory, file = source.path.parent, source.path.name
    shared = SharedWeights(directory, file, CudaMemory(placed), lambda begin, size: memory_at(begin, size, placed))
    report = shared.bring(directory, lambda: source)
    shared.give(model)
    _of_this_process.append(shared)
    return report


def shared_weights() -> SharedWeights | None:
    """Return what this process's model shares, if it does."""
    return _of_this_process[-1] if _of_this_process else None


def _nbytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
