"""CUDA: a device for ``transfer``, and memory for ``shared_image``; the one file that calls it. Not yet run on a GPU.

Needs torch, for memory that processes share NVIDIA's ``cuda.bindings``, which comes with torch for CUDA, and to count
what a process holds ``pynvml``.
"""

import os
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


class CudaMemory:
    """See ``shared_image.DeviceMemory``: memory of CUDA's virtual memory management, handed on as a file descriptor."""

    def __init__(self, device: torch.device) -> None:
        """Makes the device's context this thread's, if it isn't. Raises DeviceError."""
        try:
            from cuda.bindings import driver  # noqa: PLC0415 - there is none where there is no GPU
        except ImportError as error:
            raise DeviceError(
                str(device), f"memory can't be shared without the package cuda-bindings: {error}"
            ) from error
        torch.empty(1, device=device)
        self.name = f"cuda-{torch.cuda.get_device_properties(device).uuid}"
        self._device, self._driver = device, driver
        self._fd_kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        self._properties = driver.CUmemAllocationProp()
        self._properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._properties.location = self._location()
        self._properties.requestedHandleTypes = self._fd_kind
        recommended = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        self._granularity_bytes = int(self._call("cuMemGetAllocationGranularity", self._properties, recommended))

    def rounded(self, size_bytes: int) -> int:
        """See ``DeviceMemory``."""
        return -(-size_bytes // self._granularity_bytes) * self._granularity_bytes

    def reserve(self, size_bytes: int) -> int:
        """See ``DeviceMemory``."""
        return int(self._call("cuMemAddressReserve", size_bytes, self._granularity_bytes, 0, 0))

    def allocate(self, size_bytes: int) -> int:
        """See ``DeviceMemory``."""
        handle = self._call("cuMemCreate", size_bytes, self._properties, 0)
        try:
            return int(self._call("cuMemExportToShareableHandle", handle, self._fd_kind, 0))
        finally:
            self._call("cuMemRelease", handle)

    def map(self, address: int, size_bytes: int, descriptor: int, *, writable: bool) -> None:
        """See ``DeviceMemory``."""
        handle = self._call("cuMemImportFromShareableHandle", descriptor, self._fd_kind)
        try:
            self._call("cuMemMap", address, size_bytes, 0, handle, 0)
        finally:
            # What is mapped stays.
            self._call("cuMemRelease", handle)
        flags = self._driver.CUmemAccess_flags
        access = self._driver.CUmemAccessDesc()
        access.location = self._location()
        access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if writable else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        try:
            self._call("cuMemSetAccess", address, size_bytes, [access], 1)
        except DeviceError:
            self._call("cuMemUnmap", address, size_bytes)
            raise

    def unmap(self, address: int, size_bytes: int) -> None:
        """See ``DeviceMemory``."""
        torch.cuda.synchronize(self._device)
        self._call("cuMemUnmap", address, size_bytes)

    def _location(self) -> Any:
        location = self._driver.CUmemLocation()
        location.type = self._driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = self._device.index
        return location

    def _call(self, function: str, *arguments: Any) -> Any:
        """Return what the driver's function returns, if anything, on this device."""
        with torch.cuda.device(self._device):
            status, *values = getattr(self._driver, function)(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise DeviceError(str(self._device), f"{function}: {status.name}")
        return values[0] if values else None

    def __repr__(self) -> str:
        return f"<CudaMemory {self.name}>"


class _Addressed:
    """Memory of a device by its address, as torch takes it over from other libraries."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,), "typestr": "|u1", "data": (address, False), "version": 3, "strides": None,
        }  # fmt: skip


def process_bytes(device: torch.device) -> int | None:
    """Return what this process takes of a GPU's memory, context included, as the driver counts it.

    None where the driver doesn't tell: in many containers it knows processes by other ids.
    """
    try:
        import pynvml  # noqa: PLC0415 - the driver's own library is looked for when it is first used
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return next((each.usedGpuMemory for each in processes if each.pid == os.getpid()), None)


def memory_at(address: int, size_bytes: int, device: torch.device) -> torch.Tensor:
    """Return a device's memory as a tensor of uint8: no copy, and nothing keeps it mapped."""
    return torch.as_tensor(_Addressed(address, size_bytes), device=device)
