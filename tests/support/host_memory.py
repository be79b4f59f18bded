"""Host memory that other processes can map, as a device's: Linux keeps it as long as a descriptor or a mapping is."""

import ctypes
import mmap
import os

from storage.errors import DeviceError

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


class HostMemory:
    """See ``shared_image.DeviceMemory``. What is not mapped can't be touched. With ``room_bytes`` there is no more."""

    def __init__(self) -> None:
        self.name = "host"
        self.room_bytes: int | None = None

    def rounded(self, size_bytes: int) -> int:
        return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE

    def reserve(self, size_bytes: int) -> int:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        return _mapped(_libc.mmap(None, size_bytes, 0, flags, -1, 0))

    def allocate(self, size_bytes: int) -> int:
        if self.room_bytes is not None and size_bytes > self.room_bytes:
            raise DeviceError(self.name, f"there are no {size_bytes} bytes")
        descriptor = os.memfd_create("image")
        os.ftruncate(descriptor, size_bytes)
        return descriptor

    def map(self, address: int, size_bytes: int, descriptor: int, *, writable: bool) -> None:
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        _mapped(_libc.mmap(address, size_bytes, access, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0))

    def unmap(self, address: int, size_bytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
        _mapped(_libc.mmap(address, size_bytes, 0, flags, -1, 0))


def _mapped(address: int) -> int:
    if address in {None, ctypes.c_void_p(-1).value}:
        number = ctypes.get_errno()
        raise DeviceError("host", os.strerror(number))
    return address
