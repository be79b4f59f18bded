import os
from pathlib import Path

import pytest

from storage.adapter_dram import AdapterDram, MappedAdapter

PAGE = 4096
LAYOUT = "layout"


def digest(number: int) -> str:
    return f"{number:064x}"


def put(dram: AdapterDram, number: int, weights: bytes = b"w" * PAGE, layout: str = LAYOUT) -> None:
    with dram.making(layout, digest(number), {"number": number}, len(weights)) as made:
        made.memory[made.start : made.start + len(weights)] = weights


def weights_of(found: MappedAdapter | None) -> bytes | None:
    return None if found is None else found.memory[found.start :]


def files(root: Path) -> set[str]:
    return {path.name for path in root.glob("*/*")}


@pytest.fixture
def dram(tmp_path: Path) -> AdapterDram:
    return AdapterDram(tmp_path / "dram", 8 * PAGE)


def test_what_was_made_is_found_by_others(dram: AdapterDram, tmp_path: Path) -> None:
    assert dram.find(LAYOUT, digest(1)) is None
    put(dram, 1, b"one" * 100)
    found = AdapterDram(tmp_path / "dram", 0).find(LAYOUT, digest(1))
    assert found is not None
    assert found.header == {"number": 1}
    assert found.start % PAGE == 0
    assert weights_of(found) == b"one" * 100
    assert dram.find("another", digest(1)) is None
    assert dram.digests() == {digest(1)}
    assert repr(dram).endswith("1 adapters>")


def test_nothing_is_found_before_it_is_whole_or_if_it_fails(dram: AdapterDram, tmp_path: Path) -> None:
    class FilledBadlyError(Exception):
        pass

    def fail() -> None:
        with dram.making(LAYOUT, digest(1), {}, 10):
            assert dram.find(LAYOUT, digest(1)) is None
            raise FilledBadlyError

    with pytest.raises(FilledBadlyError):
        fail()
    assert files(tmp_path / "dram") == set()


def test_the_least_lately_used_makes_room(dram: AdapterDram, tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        put(dram, number)
        os.utime(tmp_path / "dram" / LAYOUT / digest(number), (number, number))
    assert dram.used_bytes() == 8 * PAGE
    mapped = dram.find(LAYOUT, digest(2))
    dram.find(LAYOUT, digest(1))
    put(dram, 5, layout="another")
    assert dram.digests() == {digest(number) for number in (1, 2, 4, 5)}
    put(dram, 6, b"w" * 3 * PAGE)
    assert dram.digests() == {digest(number) for number in (1, 5, 6)} or dram.used_bytes() <= 8 * PAGE
    assert weights_of(mapped) == b"w" * PAGE, "who has it mapped keeps it"


def test_one_that_is_larger_than_all_of_it_changes_nothing(dram: AdapterDram) -> None:
    put(dram, 1)
    with pytest.raises(OSError, match="are allowed"):
        put(dram, 2, b"w" * 8 * PAGE)
    assert dram.digests() == {digest(1)}


def test_removed_in_every_layout(dram: AdapterDram) -> None:
    put(dram, 1)
    put(dram, 1, layout="another")
    put(dram, 2)
    dram.remove(digest(1))
    dram.remove(digest(7))
    assert dram.digests() == {digest(2)}
    assert dram.find("another", digest(1)) is None


def test_what_a_dead_writer_has_left_goes_with_the_next(dram: AdapterDram, tmp_path: Path) -> None:
    put(dram, 1)
    (tmp_path / "dram" / LAYOUT / ".abandoned").touch()
    put(dram, 2)
    assert files(tmp_path / "dram") == {digest(1), digest(2)}


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff" * 100, b"\x04\0\0\0\0\0\0\0nope"])
def test_what_is_no_such_file_is_not_found(dram: AdapterDram, tmp_path: Path, content: bytes) -> None:
    put(dram, 1)
    (tmp_path / "dram" / LAYOUT / digest(1)).write_bytes(content)
    assert dram.find(LAYOUT, digest(1)) is None
