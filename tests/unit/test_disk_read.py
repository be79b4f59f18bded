"""Ranges of files, past the page cache where it does not have them: the same bytes whatever the alignment."""

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.disk_read import Ranges, mostly_cached, open_ranges

SIZE_BYTES = (3 << 20) + 1234
CONTENT = random.Random(1).randbytes(SIZE_BYTES)  # noqa: S311 - test data


@pytest.fixture
def ranges(tmp_path: Path) -> Iterator[Ranges]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with open_ranges(path) as opened:
        os.fsync(opened.descriptor)
        os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        yield opened


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, SIZE_BYTES), (0, 2 << 20), (1 << 20, 2 << 20), (1 << 20, SIZE_BYTES), (77, 2 << 20), (4096, 5000), (9, 0)],
)
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned memory", "unaligned memory"])
def test_every_byte_is_read(ranges: Ranges, start: int, length: int, shift: int) -> None:
    out = memoryview(mmap.mmap(-1, SIZE_BYTES + 4096))[shift : shift + length]
    wanted = CONTENT[start : start + length]
    assert ranges.read(start, out) == len(wanted)
    assert out[: len(wanted)] == wanted
    assert not any(out[len(wanted) :])


def test_what_is_half_in_the_page_cache_is_whole(ranges: Ranges) -> None:
    os.pread(ranges.descriptor, 300_000, 0)
    os.pread(ranges.descriptor, 10, 2 << 20)
    out = memoryview(mmap.mmap(-1, SIZE_BYTES))
    assert ranges.read(0, out) == SIZE_BYTES
    assert out == CONTENT


def test_it_leaves_the_page_cache_alone(ranges: Ranges) -> None:
    try:
        os.close(os.open(f"/proc/self/fd/{ranges.descriptor}", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no direct reads")
    ranges.read(0, memoryview(mmap.mmap(-1, SIZE_BYTES))[: 3 << 20])
    assert not mostly_cached(ranges.descriptor, 1 << 20, 1 << 20)
    os.pread(ranges.descriptor, 1 << 20, 1 << 20)
    assert mostly_cached(ranges.descriptor, 1 << 20, 1 << 20)
