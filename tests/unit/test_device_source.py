"""A snapshot's file for a device: locked in the background, once, and what the host keeps of the device's memory."""

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.device_weights import KeptMemory, SourceOfProcess, fill
from storage.device_source import DeviceSource
from storage.errors import CorruptSnapshotError, DeviceError
from storage.fake_device import FakeDevice
from storage.manifest import MANIFEST_NAME, Manifest, Origin
from storage.snapshot import describe_directory
from storage.weights import rank_file, write_tensors

WEIGHTS = {
    "linear.weight": torch.arange(600, dtype=torch.float32).view(20, 30),
    "norm.weight": torch.arange(7, dtype=torch.bfloat16),
}


class SlowToLock(FakeDevice):
    """Locks memory only once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_lock = threading.Event()

    def register(self, memory: torch.Tensor) -> None:
        assert self.may_lock.wait(10)
        super().register(memory)


class NoRoomAtAll(FakeDevice):
    def register(self, memory: torch.Tensor) -> None:
        raise DeviceError("fake", f"no locking of {memory.nbytes} bytes")

    def pinned(self, size_bytes: int) -> torch.Tensor:
        raise DeviceError("fake", f"no {size_bytes} bytes of pinned memory")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    write_tensors(tmp_path / rank_file(0), WEIGHTS)
    manifest = describe_directory("some", Origin("a" * 64, "float32", None, 1, "cuda", "0"), tmp_path)
    (tmp_path / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest


def empty() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(weight) for name, weight in WEIGHTS.items()}


def test_locking_goes_on_behind_and_filling_waits_for_it(tmp_path: Path, manifest: Manifest) -> None:
    device = SlowToLock()
    source = DeviceSource(tmp_path / rank_file(0), manifest.tensors, lambda: device)
    assert not source.ready()
    assert "being locked" in repr(source)
    device.may_lock.set()
    weights = empty()
    assert fill(weights, source).path == "registered"
    assert all(torch.equal(weights[name], weight) for name, weight in WEIGHTS.items())
    assert len(device.registered) == 1
    source.close()
    assert not device.registered


def test_what_fails_while_locking_is_said_when_it_matters(tmp_path: Path, manifest: Manifest) -> None:
    source = DeviceSource(tmp_path / rank_file(0), manifest.tensors, NoRoomAtAll)
    with pytest.raises(DeviceError, match="pinned memory"):
        fill(empty(), source)
    source.close()
    (tmp_path / rank_file(0)).write_bytes(b"short")
    with pytest.raises(CorruptSnapshotError, match="ends after 5 bytes"):
        DeviceSource(tmp_path / rank_file(0), manifest.tensors, FakeDevice).fill(empty())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda weights: weights.pop("norm.weight"),
        lambda weights: weights.update({"more.weight": torch.zeros(1)}),
        lambda weights: weights.update({"linear.weight": torch.zeros(30, 20)}),
        lambda weights: weights.update({"norm.weight": torch.zeros(7, dtype=torch.float16)}),
    ],
    ids=["missing", "superfluous", "shape", "type"],
)
def test_another_models_snapshot_is_refused_before_anything_is_copied(
    tmp_path: Path, manifest: Manifest, wrong: object
) -> None:
    device = FakeDevice()
    weights = empty()
    wrong(weights)  # type: ignore[operator]
    with pytest.raises(CorruptSnapshotError, match="is not this model's"):
        fill(weights, DeviceSource(tmp_path / rank_file(0), manifest.tensors, lambda: device))
    assert device.copied_bytes == 0


def test_weights_that_lie_scattered_are_filled_too(tmp_path: Path, manifest: Manifest) -> None:
    weights = empty() | {"linear.weight": torch.zeros(30, 20).t()}
    fill(weights, DeviceSource(tmp_path / rank_file(0), manifest.tensors, FakeDevice))
    assert torch.equal(weights["linear.weight"], WEIGHTS["linear.weight"])


def test_a_process_locks_one_snapshot_at_a_time(tmp_path: Path, manifest: Manifest) -> None:
    device = FakeDevice()
    of_process = SourceOfProcess()
    first = of_process.prepare(tmp_path, rank_file(0), lambda: device)
    fill(empty(), first)
    assert of_process.prepare(tmp_path, rank_file(0), lambda: device) is first
    other = tmp_path / "other"
    other.mkdir()
    write_tensors(other / rank_file(0), WEIGHTS)
    (other / MANIFEST_NAME).write_bytes(manifest.to_json())
    fill(empty(), of_process.prepare(other, rank_file(0), lambda: device))
    assert len(device.registered) == 1
    with pytest.raises(CorruptSnapshotError, match="can't be read"):
        of_process.prepare(tmp_path / "nothing", rank_file(0), lambda: device)
    assert len(device.registered) == 1
    of_process.close()
    of_process.close()
    assert not device.registered


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 30)), max_size=6))
def test_what_a_snapshot_lacks_is_kept_and_nothing_else(spans: list[tuple[int, int]]) -> None:
    memory = torch.arange(150, dtype=torch.uint8)
    before = memory.clone()
    # Two blocks with a gap between them.
    blocks = [memory[10:70], memory[80:140]]
    kept = KeptMemory(blocks, [memory[begin : begin + length] for begin, length in spans])
    covered = {at for begin, length in spans for at in range(begin, begin + length)}
    ours = {at for at in (*range(10, 70), *range(80, 140)) if at not in covered}
    assert kept.size_bytes == len(ours)
    memory.fill_(255)
    kept.restore()
    assert {at for at in range(150) if memory[at] == before[at]} - {255} == ours
