"""A CUDA device for ``transfer``; the one file that calls CUDA. Needs torch and nothing else. Not yet run on a GPU."""

from typing import Any

import torch

from storage.errors import DeviceError

_STREAMS = 2
_READ_ONLY_FLAG = 0x08  # cudaHostRegisterReadOnly
_SUCCESS = 0


class CudaDevice:
    """See ``transfer.Device``."""

    def __init__(self, device: torch.device, streams: int = _STREAMS) -> None:
        self.streams = streams
        self._device = device
        self._queues = [torch.cuda.Stream(device) for _ in range(streams)]

    def register(self, memory: torch.Tensor) -> None:
        """See ``Device``. Registered without the read-only flag where the device does not know it.

        A refusal stays behind as this thread's last CUDA error, so ask from a thread of its own (``device_source``).
        """
        runtime = torch.cuda.cudart()
        with torch.cuda.device(self._device):
            for flags in (_READ_ONLY_FLAG, 0):
                if int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, flags)) == _SUCCESS:
                    return
        raise DeviceError(str(self._device), f"{memory.nbytes} bytes of host memory can't be locked")

    def unregister(self, memory: torch.Tensor) -> None:
        """See ``Device``."""
        torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())

    def pinned(self, size_bytes: int) -> torch.Tensor:
        """See ``Device``."""
        try:
            return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise DeviceError(str(self._device), f"no {size_bytes} bytes of pinned memory: {error}") from error

    def copy(self, stream: int, source: torch.Tensor, target: torch.Tensor) -> None:
        """See ``Device``."""
        with torch.cuda.stream(self._queues[stream]):
            target.copy_(source, non_blocking=True)

    def mark(self, stream: int) -> torch.cuda.Event:
        """See ``Device``."""
        return self._queues[stream].record_event()

    def wait(self, mark: Any) -> None:
        """See ``Device``."""
        try:
            mark.synchronize()
        except RuntimeError as error:
            raise DeviceError(str(self._device), f"a copy failed: {error}") from error

    def __repr__(self) -> str:
        return f"<CudaDevice {self._device}, {self.streams} streams>"
