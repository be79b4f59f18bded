"""Memory of a mapped file, taken range by range: pages are there before anybody writes to them.

A page that is first written to costs a fault of its own, and where the memory is full it costs the process its life.
Asked for at once, a range costs one call, and fails with an error. Linux only.
"""

import ctypes
import errno
import mmap
import os

# From Linux 5.14 on; the module ``mmap`` does not know it yet, and holds the interpreter's lock in its ``madvise``.
_MADV_POPULATE_WRITE = 23
_libc = ctypes.CDLL(None, use_errno=True)


def populate(mapped: mmap.mmap, descriptor: int, start: int, end: int) -> None:
    """Take the memory for bytes ``start`` to ``end`` of a mapped file; ``start`` is on a page boundary.

    Raises:
        OSError: there is none left (ENOSPC), or the range can't be had.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped, start))
    if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(end - start), _MADV_POPULATE_WRITE) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EINVAL:  # an older kernel: pages fault one by one, but memory is set aside
        os.posix_fallocate(descriptor, start, end - start)
    else:
        # EFAULT: a write would have ended the process.
        number = errno.ENOSPC if number in {errno.EFAULT, errno.ENOMEM} else number
        raise OSError(number, os.strerror(number))
