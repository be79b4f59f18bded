"""Memory handed back to the operating system: of one tensor while its addresses stay, and of the heap. Linux only."""

import ctypes
import mmap
import os

import torch

_libc = ctypes.CDLL(None, use_errno=True)


def drop_pages(storage: torch.UntypedStorage) -> None:
    """Give the pages of a tensor's anonymous memory back; it then reads as zeros and takes memory again when written.

    Its address stays, so whoever holds a view or a pointer is none the wiser.

    Raises:
        OSError: the system refuses.
    """
    start, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    # What shares its page with other memory can't go, and is zeroed instead, to be like the rest.
    first, last = _round_up(start), end - end % mmap.PAGESIZE
    if first >= last:
        ctypes.memset(start, 0, end - start)
        return
    ctypes.memset(start, 0, first - start)
    ctypes.memset(last, 0, end - last)
    if _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def trim_heap() -> None:
    """Make the allocator give back what it keeps for later."""
    # vLLM preloads tcmalloc where its build brings one along; the C library's own is there in any case.
    tcmalloc = getattr(_libc, "MallocExtension_ReleaseFreeMemory", None)
    if tcmalloc is not None:
        tcmalloc()
    _libc.malloc_trim(0)


def _round_up(address: int) -> int:
    return -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
