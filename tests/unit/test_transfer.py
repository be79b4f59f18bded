"""The transfer to a device, on one that is as late as it may be: right bytes, right order, no buffer used too early."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import CorruptSnapshotError, DeviceError
from storage.fake_device import FakeDevice
from storage.folders import DirectoryFolder
from storage.manifest import TensorEntry
from storage.snapshot import read_header
from storage.transfer import Transfer, plan_pieces
from storage.weights import map_file, map_tensors, rank_file, write_tensors

PIECE = 1000


def sample(directory: Path, sizes: list[int]) -> tuple[dict[str, torch.Tensor], list[TensorEntry], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"t{number}": torch.randint(-999, 999, (size,), generator=generator, dtype=torch.int16)
        for number, size in enumerate(sizes)
    }
    path = directory / rank_file(0)
    path.unlink(missing_ok=True)
    write_tensors(path, tensors)
    folder = DirectoryFolder(directory)
    return tensors, read_header(folder, folder.list_files()[0]), map_file(path, shared=True)


def empty_like(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


@given(
    sizes=st.lists(st.integers(0, 4000), min_size=1, max_size=8),
    streams=st.integers(1, 3),
    ring_buffers=st.integers(1, 5),
    lockable=st.booleans(),
)
@settings(deadline=None)
def test_every_byte_arrives_on_either_path(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], streams: int, ring_buffers: int, *, lockable: bool
) -> None:
    tensors, entries, memory = sample(tmp_path_factory.mktemp("t"), sizes)
    device = FakeDevice(streams, lockable_bytes=None if lockable else 0)
    transfer = Transfer(device, memory, entries, piece_bytes=PIECE, ring_buffers=ring_buffers)
    for _ in range(2):  # an engine wakes more than once
        targets = empty_like(tensors)
        addresses = {name: target.data_ptr() for name, target in targets.items()}
        report = transfer.run(targets)
        assert all(torch.equal(targets[name], tensor) for name, tensor in tensors.items())
        assert addresses == {name: target.data_ptr() for name, target in targets.items()}
        assert report.path == ("registered" if lockable else "ring")
        assert report.size_bytes == 2 * sum(sizes)
    assert device.copied_bytes == 4 * sum(sizes)
    assert device.pinned_bytes == (0 if lockable else ring_buffers * PIECE)
    transfer.close()
    assert device.registered == {}


@given(sizes=st.lists(st.integers(0, 5000), max_size=6), piece_bytes=st.integers(1, 3000))
def test_pieces_cover_each_tensor_once_and_in_order(sizes: list[int], piece_bytes: int) -> None:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    entries = [
        TensorEntry(f"t{number}", "f", "U8", (size,), start, start + size)
        for number, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]
    pieces = plan_pieces(reversed(entries), piece_bytes)
    covered = [byte for piece in pieces for byte in (piece.start, piece.end)]
    assert covered == sorted(covered)
    assert sum(piece.end - piece.start for piece in pieces) == sum(sizes)
    assert all(0 < piece.end - piece.start <= piece_bytes for piece in pieces)
    by_name = {entry.name: entry for entry in entries}
    assert all(piece.start - piece.offset == by_name[piece.tensor].start for piece in pieces)


def test_what_does_not_fit_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    tensors, entries, memory = sample(tmp_path, [100, 200])
    device = FakeDevice()
    transfer = Transfer(device, memory, entries, piece_bytes=PIECE)
    targets = empty_like(tensors)
    wrong = [
        {"t0": targets["t0"]},
        targets | {"t1": torch.zeros(199, dtype=torch.int16)},
        targets | {"t1": torch.zeros(400, dtype=torch.int16)[::2]},
    ]
    for given_targets in wrong:
        with pytest.raises(CorruptSnapshotError, match="t1 is 400 bytes in one piece"):
            transfer.run(given_targets)
    assert device.copied_bytes == 0


@pytest.mark.parametrize("lockable_bytes", [None, 0])
def test_a_failed_copy_is_reported(tmp_path: Path, lockable_bytes: int | None) -> None:
    tensors, entries, memory = sample(tmp_path, [4000])
    transfer = Transfer(FakeDevice(1, lockable_bytes, fail_at=3), memory, entries, piece_bytes=PIECE, ring_buffers=2)
    with pytest.raises(DeviceError, match="a copy failed"):
        transfer.run(empty_like(tensors))


def test_mapped_tensors_are_views_that_nobody_can_harm(tmp_path: Path) -> None:
    tensors, entries, memory = sample(tmp_path, [3000, 0, 5])
    views = map_tensors(tmp_path / rank_file(0), entries)
    assert {name: view.tolist() for name, view in views.items()} == {n: t.tolist() for n, t in tensors.items()}
    assert views["t0"].data_ptr() % 4096 == 0
    before = (tmp_path / rank_file(0)).read_bytes()
    views["t0"].fill_(7)
    assert (tmp_path / rank_file(0)).read_bytes() == before
    with pytest.raises(CorruptSnapshotError, match="ends after"):
        map_tensors(tmp_path / rank_file(0), [TensorEntry("x", "f", "U8", (1,), memory.nbytes, memory.nbytes + 1)])
    with pytest.raises(CorruptSnapshotError, match="can't be mapped"):
        map_file(tmp_path / "nowhere")
