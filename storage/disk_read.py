"""Reads ranges of files: what is in the page cache from there, the rest past it, straight into the target's memory.

A snapshot that comes from disk is read once and then lies in memory of its own, so a copy of it in the page cache would
only cost time and drive out what others need. Linux only.
"""

import ctypes
import errno
import mmap
import os

# What reads past the page cache goes by pages, in the file and in memory.
_PAGE_BYTES = mmap.PAGESIZE
# Below it is not worth opening the file again.
_LEAST_DIRECT_BYTES = 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


def read_range(descriptor: int, start: int, out: memoryview) -> int:
    """Fill ``out`` with a file's bytes from ``start`` on; return how many there were, less than asked for at its end.

    Raises:
        OSError: it can't be read.
    """
    done = 0
    if len(out) >= _LEAST_DIRECT_BYTES and start % _PAGE_BYTES == 0 and not _mostly_cached(descriptor, start, len(out)):
        done = _read_directly(descriptor, start, out[: len(out) - len(out) % _PAGE_BYTES])
    while done < len(out) and (count := os.preadv(descriptor, [out[done:]], start + done)):
        done += count
    return done


def _read_directly(descriptor: int, start: int, out: memoryview) -> int:
    """Read past the page cache for as long as that works."""
    try:
        # By its descriptor: it is the same file even if its name is another one's by now.
        direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return 0  # not on this file system; whatever else is wrong, the ordinary way will say
    done = 0
    try:
        while done < len(out) and (count := os.preadv(direct, [out[done:]], start + done)):
            done += count
    except OSError as error:
        # What is not aligned as this device wants it: the rest of a file, memory in the middle of a page.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(direct)
    return done


def _mostly_cached(descriptor: int, start: int, length: int) -> bool:
    # Asked of a mapping: a read that mustn't wait would have the kernel read ahead.
    length = min(length, os.fstat(descriptor).st_size - start)
    if length <= 0:
        return True
    pages = -(-length // _PAGE_BYTES)
    resident = (ctypes.c_ubyte * pages)()
    with mmap.mmap(descriptor, length, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=start) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(first))
        known = _libc.mincore(address, ctypes.c_size_t(length), resident) == 0
        del first, address
    return known and 2 * sum(flag & 1 for flag in bytes(resident)) >= pages
