"""Memory handed back to the system: it is gone, reads as zeros, and what lies beside it stays."""

import ctypes
import mmap

import psutil
import pytest
import torch

from deployments.os_memory import drop_pages, trim_heap

PAGE_BYTES = mmap.PAGESIZE


def test_dropped_pages_leave_memory_and_read_as_zeros() -> None:
    tensor = torch.ones(64 << 20, dtype=torch.uint8)
    address = tensor.data_ptr()
    before_bytes = psutil.Process().memory_info().rss
    drop_pages(tensor.untyped_storage())
    assert before_bytes - psutil.Process().memory_info().rss > 60 << 20
    assert tensor.data_ptr() == address
    assert not tensor.any()
    tensor.fill_(1)  # it can be used again
    assert tensor.all()


@pytest.mark.parametrize(
    ("start", "length"),
    [(100, 50), (100, PAGE_BYTES), (0, 3 * PAGE_BYTES), (1, 3 * PAGE_BYTES), (PAGE_BYTES - 1, 2), (0, 5 * PAGE_BYTES)],
)
def test_what_lies_beside_stays(start: int, length: int) -> None:
    with mmap.mmap(-1, 6 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"x" * len(memory)
        tensor = torch.frombuffer(memory, dtype=torch.uint8, offset=start, count=length)
        drop_pages(tensor.untyped_storage())
        assert not tensor.any()
        del tensor
        assert memory[:] == b"x" * start + bytes(length) + b"x" * (len(memory) - start - length)


def test_pages_that_are_locked_in_memory_are_refused() -> None:
    with mmap.mmap(-1, 2 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        assert ctypes.CDLL(None).mlock(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(len(memory))) == 0
        with pytest.raises(OSError, match="Invalid argument"):
            drop_pages(tensor.untyped_storage())
        del tensor


def test_trimming_the_heap_is_harmless() -> None:
    trim_heap()
