"""Reads ranges of files: what is in the page cache from there, the rest past it, straight into the target's memory.

A snapshot that comes from disk is read once and then lies in memory of its own, so a copy of it in the page cache would
only cost time and drive out what others need. Linux only.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What reads past the page cache goes by pages, in the file and in memory.
_PAGE_BYTES = mmap.PAGESIZE
# Below it is not worth opening the file again, or asking what is in the page cache.
_LEAST_DIRECT_BYTES = 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class Ranges:
    """An open file, read by ranges; for one thread."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._direct: int | None = None
        self._may_be_direct = True

    def read(self, start: int, out: memoryview) -> int:
        """Fill ``out`` with the bytes from ``start`` on; return how many there were, less than asked for at the end.

        Raises:
            OSError: it can't be read.
        """
        done = 0
        if self._may_be_direct and len(out) >= _LEAST_DIRECT_BYTES and start % _PAGE_BYTES == 0:
            done = self._read_directly(start, out[: len(out) - len(out) % _PAGE_BYTES])
        while done < len(out) and (count := os.preadv(self.descriptor, [out[done:]], start + done)):
            done += count
        return done

    def _read_directly(self, start: int, out: memoryview) -> int:
        """Read past the page cache as far as that goes, unless it is all there."""
        if mostly_cached(self.descriptor, start, len(out)):
            return 0
        done = 0
        try:
            if self._direct is None:
                # By its descriptor: it is the same file even if its name is another one's by now.
                self._direct = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_DIRECT)
            while done < len(out) and (count := os.preadv(self._direct, [out[done:]], start + done)):
                done += count
        except OSError:
            # Not on this file system, or not to this memory; whatever else is wrong, the ordinary way will say.
            self._may_be_direct = False
        return done

    def close(self) -> None:
        """Close what was opened here."""
        if self._direct is not None:
            os.close(self._direct)
        os.close(self.descriptor)


@contextmanager
def open_ranges(path: Path) -> Iterator[Ranges]:
    """Open a file to be read by ranges.

    Raises:
        OSError: it can't be opened.
    """
    ranges = Ranges(os.open(path, os.O_RDONLY))
    try:
        yield ranges
    finally:
        ranges.close()


def mostly_cached(descriptor: int, start: int, length: int) -> bool:
    """Tell whether at least half of a range is in the page cache, without changing what is; False if nobody knows."""
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
