"""Sleep on a GPU, by a stand-in for vLLM's worker: its memory is lost in sleep, and its copies are as late as may be.

The stand-in does what vLLM's worker and allocator do (guarded in ``test_vllm_names``): level 2 saves the buffers of the
model and nothing else, level 1 saves all weights, both keep addresses. Not a GPU: what CUDA does is not tested here.
"""

import ctypes
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from deployments.device_weights import SourceOfProcess
from deployments.gpu_worker import SleepingGpuWorker
from deployments.shared_weights import SharedWeights, lay_out, unshareable
from deployments.snapshot_weights import entries_of, weights_of
from storage.device_source import DeviceSource
from storage.errors import CorruptSnapshotError, DeviceError
from storage.fake_device import FakeDevice
from storage.manifest import MANIFEST_NAME, Origin
from storage.shared_image import images_directory
from storage.snapshot import describe_directory
from storage.weights import rank_file, write_tensors
from tests.support.host_memory import HostMemory

BLOCK_BYTES = 1 << 16
GARBAGE = 0xAB


class Memory:
    """The pool of weights: two blocks, as an allocator that takes large ones at a time would have them."""

    def __init__(self) -> None:
        self.blocks = [torch.zeros(BLOCK_BYTES, dtype=torch.uint8) for _ in range(2)]
        self._used = [0, 0]

    def place(self, tensor: torch.Tensor, block: int) -> torch.Tensor:
        """A copy of the tensor in a block."""
        begin = self._used[block] = -(-self._used[block] // 512) * 512
        self._used[block] += tensor.nbytes
        placed = self.blocks[block][begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return placed.copy_(tensor)

    def lose(self) -> None:
        for block in self.blocks:
            block.fill_(GARBAGE)


class Linear(nn.Module):
    """A layer as vLLM's are: a weight, a method, tables that are no parameters."""

    def __init__(self, memory: Memory, seed: int, method: type) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(memory.place(torch.randn(40, 30, generator=generator), seed % 2))
        self.register_buffer("scale", memory.place(torch.tensor([seed + 0.5]), 0))
        self.register_buffer("rotary", memory.place(torch.randn(64, generator=generator), 1), persistent=False)
        self.table = memory.place(torch.randn(33, generator=generator), 0)
        self.quant_method = object.__new__(method)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight.t() * self.scale).sum(-1, keepdim=True) + self.rotary + self.table.sum()


class WithAdapters(nn.Module):
    """As vLLM wraps a layer: adapters' matrices are no parameters."""

    def __init__(self, memory: Memory, base_layer: Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_a_stacked = (memory.place(torch.full((2, 30), 0.25), 1),)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + (x @ self.lora_a_stacked[0].t()).sum()


def make_model(memory: Memory, *, method: type = UnquantizedLinearMethod, adapters: bool = False) -> nn.Module:
    first, second = Linear(memory, 0, method), Linear(memory, 1, UnquantizedEmbeddingMethod)
    tied = nn.Module()
    tied.weight = second.weight
    if adapters:
        # Adapters' wrappers also change which of a tied weight's names comes first.
        return nn.ModuleDict({"tied": tied, "first": WithAdapters(memory, first), "second": second})
    return nn.ModuleDict({"first": first, "second": second, "tied": tied})


def answer(model: nn.Module) -> torch.Tensor:
    x = torch.linspace(-1, 1, 30).unsqueeze(0)
    return torch.stack([model["first"](x), model["second"](x)])


@dataclass
class StandInWorker(SleepingGpuWorker):
    """vLLM's half, and the device."""

    model: nn.Module
    memory: Memory
    accelerator: FakeDevice = field(default_factory=FakeDevice)
    calls: list[Any] = field(default_factory=list)
    model_config: Any = field(default_factory=lambda: SimpleNamespace(enable_sleep_mode=True))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    source_of_process: SourceOfProcess = field(default_factory=SourceOfProcess)
    shared: SharedWeights | None = None
    saved: dict[str, torch.Tensor] = field(default_factory=dict)
    backup: list[torch.Tensor] = field(default_factory=list)

    def get_model(self) -> nn.Module:
        return self.model

    def sleep(self, level: int = 1) -> None:
        self.calls.append(("sleep", level))
        if level == 1:
            self.backup = [block.clone() for block in self.memory.blocks]
        else:
            self.saved = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.memory.lose()

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.calls.append(("wake_up", tags))
        for block, copy in zip(self.memory.blocks, self.backup, strict=False):
            block.copy_(copy)
        self.backup = []
        for name, buffer in self.model.named_buffers():
            if name in self.saved:
                buffer.copy_(self.saved[name])
        self.saved = {}

    def weights_memory(self) -> list[torch.Tensor]:
        return self.memory.blocks

    def shared_weights(self) -> SharedWeights | None:
        return self.shared

    def snapshot_source(self, snapshot: str) -> DeviceSource:
        return self.source_of_process.prepare(Path(snapshot), rank_file(0), lambda: self.accelerator)


def write_snapshot(directory: Path, model: nn.Module) -> Path:
    directory.mkdir()
    write_tensors(directory / rank_file(0), weights_of(model))
    manifest = describe_directory("some", Origin("a" * 64, "float32", None, 1, "cuda", "0"), directory)
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    return directory


def addresses(model: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "adapters"])
@pytest.mark.parametrize("lockable_bytes", [None, 0], ids=["registered", "ring"])
def test_it_wakes_as_it_fell_asleep(tmp_path: Path, lockable_bytes: int | None, *, adapters: bool) -> None:
    memory = Memory()
    # The snapshot was made without adapters, as each is.
    snapshot = write_snapshot(tmp_path / "snapshot", make_model(Memory()))
    worker = StandInWorker(make_model(memory, adapters=adapters), memory, FakeDevice(2, lockable_bytes))
    expected, where = answer(worker.model), addresses(worker.model)
    for cycle in range(3):
        assert worker.fall_asleep() is None
        assert worker.calls.pop() == ("sleep", 2)
        assert not torch.equal(answer(worker.model), expected)
        worker.prepare_wake(str(snapshot))
        stages = worker.wake_from(str(snapshot))
        assert worker.calls == [("wake_up", ["weights"]), ("wake_up", None)]
        worker.calls.clear()
        assert stages["registered"] == (1.0 if lockable_bytes is None else 0.0)
        assert torch.equal(answer(worker.model), expected), f"cycle {cycle}"
        assert addresses(worker.model) == where
    file_bytes = (snapshot / rank_file(0)).stat().st_size
    assert list(worker.accelerator.registered.values()) == ([file_bytes] if lockable_bytes is None else [])


def test_the_host_keeps_only_what_the_snapshot_lacks(tmp_path: Path) -> None:
    memory = Memory()
    worker = StandInWorker(make_model(memory), memory)
    weights = weights_of(worker.model)
    assert set(weights) == {"first.weight", "first.scale", "second.weight", "second.scale"}
    worker.fall_asleep()
    assert worker.flashserve_kept is not None
    held_bytes = sum(weight.nbytes for weight in weights.values())
    assert worker.flashserve_kept.size_bytes == 2 * BLOCK_BYTES - held_bytes
    snapshot = write_snapshot(tmp_path / "snapshot", make_model(Memory()))
    worker.wake_from(str(snapshot))
    assert worker.flashserve_kept is None, "awake, the host keeps nothing"


def test_weights_that_vllm_changes_go_to_the_host_and_back(tmp_path: Path) -> None:
    memory = Memory()
    worker = StandInWorker(make_model(memory, method=Fp8LinearMethod), memory)
    expected = answer(worker.model)
    assert worker.fall_asleep() is None
    worker.prepare_wake(str(tmp_path / "not looked at"))
    worker.wake_from(str(tmp_path / "not looked at"))
    assert worker.calls == [("sleep", 1), ("wake_up", None)]
    assert torch.equal(answer(worker.model), expected)


def test_without_sleep_mode_it_says_so() -> None:
    memory = Memory()
    worker = StandInWorker(make_model(memory), memory, model_config=SimpleNamespace(enable_sleep_mode=False))
    assert "keeps its addresses" in str(worker.fall_asleep())
    assert worker.calls == []


def test_a_wake_that_fails_can_be_tried_again(tmp_path: Path) -> None:
    memory = Memory()
    snapshot = write_snapshot(tmp_path / "snapshot", make_model(Memory()))
    other = nn.ModuleDict({"first": nn.Linear(3, 4)})
    wrong = write_snapshot(tmp_path / "wrong", other)
    worker = StandInWorker(make_model(memory), memory, FakeDevice(fail_at=2))
    expected = answer(worker.model)
    worker.fall_asleep()
    for refused in (wrong, tmp_path / "nothing"):
        with pytest.raises(CorruptSnapshotError):
            worker.wake_from(str(refused))
        assert worker.calls == [("sleep", 2)], "it still sleeps"
    with pytest.raises(DeviceError, match="a copy failed"):
        worker.wake_from(str(snapshot))
    worker.wake_from(str(snapshot))
    assert torch.equal(answer(worker.model), expected)


def host_bytes(address: int, size_bytes: int) -> torch.Tensor:
    return torch.frombuffer((ctypes.c_char * size_bytes).from_address(address), dtype=torch.uint8)


def sharing(snapshot: Path, root: Path, device: HostMemory | None = None) -> StandInWorker:
    """A worker whose model was loaded with shared weights; it differs from the snapshot's before that."""
    memory = Memory()
    worker = StandInWorker(make_model(memory, adapters=True), memory)
    for weight in weights_of(worker.model).values():
        weight.zero_()
    worker.shared = SharedWeights(snapshot, rank_file(0), device or HostMemory(), host_bytes, root)
    worker.shared.bring(snapshot, lambda: worker.snapshot_source(str(snapshot)))
    # What loads a model knows no adapters.
    worker.shared.give(nn.ModuleDict({**dict(worker.model.items()), "first": worker.model["first"].base_layer}))
    return worker


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A snapshot, and where processes with it find each other."""
    with tempfile.TemporaryDirectory() as root:  # pytest's are too deep for sockets
        yield write_snapshot(tmp_path / "snapshot", make_model(Memory())), Path(root)


def test_engines_that_share_weights_copy_them_once_and_sleep_apart(shared: tuple[Path, Path]) -> None:
    snapshot, root = shared
    expected = answer(make_model(Memory(), adapters=True))
    weights_bytes = sum(weight.nbytes for weight in weights_of(make_model(Memory())).values())
    workers = [sharing(snapshot, root) for _ in range(2)]
    where = [addresses(worker.model) for worker in workers]
    assert [worker.accelerator.copied_bytes for worker in workers] == [weights_bytes, 0]
    assert all(torch.equal(answer(worker.model), expected) for worker in workers)
    for first, second in (workers, workers[::-1]):
        assert first.fall_asleep() is None
        assert torch.equal(answer(second.model), expected), "another's sleep changes nothing"
        assert "registered" not in first.wake_from(str(snapshot)), "nothing was copied"
        assert torch.equal(answer(first.model), expected)
    for worker in workers:
        worker.fall_asleep()
    stages = workers[1].wake_from(str(snapshot))
    assert stages["registered"] == 1.0, "nobody had them any more"
    workers[0].wake_from(str(snapshot))
    assert [worker.accelerator.copied_bytes for worker in workers] == [weights_bytes, weights_bytes]
    assert all(torch.equal(answer(worker.model), expected) for worker in workers)
    assert [addresses(worker.model) for worker in workers] == where
    for worker in workers:
        worker.fall_asleep()


def test_what_is_an_engines_own_is_not_shared(shared: tuple[Path, Path]) -> None:
    one, other = (sharing(*shared) for _ in range(2))
    mine, theirs = one.model["first"], other.model["first"]
    mine.lora_a_stacked[0].fill_(0.5)
    mine.base_layer.scale.fill_(3.0)
    assert torch.equal(theirs.lora_a_stacked[0], torch.full((2, 30), 0.25))
    assert theirs.base_layer.scale.item() == 0.5
    changed = answer(one.model)
    one.fall_asleep()
    one.wake_from(str(shared[0]))
    assert torch.equal(answer(one.model), changed)
    for worker in (one, other):
        worker.fall_asleep()


def test_a_wake_that_finds_no_room_sleeps_on(shared: tuple[Path, Path], tmp_path: Path) -> None:
    snapshot, root = shared
    device = HostMemory()
    worker = sharing(snapshot, root, device)
    expected = answer(worker.model)
    worker.fall_asleep()
    worker.calls.clear()
    device.room_bytes = 0
    with pytest.raises(DeviceError, match="there are no"):
        worker.wake_from(str(snapshot))
    with pytest.raises(CorruptSnapshotError, match="differs in"):
        worker.wake_from(str(write_snapshot(tmp_path / "wrong", nn.ModuleDict({"first": nn.Linear(3, 4)}))))
    assert worker.calls == [], "it still sleeps"
    device.room_bytes = None
    worker.wake_from(str(snapshot))
    assert torch.equal(answer(worker.model), expected)
    worker.fall_asleep()


def test_a_wake_that_fails_behind_the_weights_can_be_tried_again(
    shared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = sharing(*shared)
    expected = answer(worker.model)
    worker.fall_asleep()
    with monkeypatch.context() as patch:
        patch.setattr(worker, "wake_up", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            worker.wake_from(str(shared[0]))
    worker.wake_from(str(shared[0]))
    assert torch.equal(answer(worker.model), expected)
    worker.fall_asleep()


def test_tensors_of_an_image_begin_as_kernels_want_them(shared: tuple[Path, Path]) -> None:
    layout, size_bytes = lay_out(entries_of(shared[0], rank_file(0)))
    assert [begin % 256 for *_, begin in layout] == [0] * len(layout)
    assert layout == lay_out(reversed(entries_of(shared[0], rank_file(0))))[0], "whatever their order in the file"
    name, shape, dtype, begin = layout[-1]
    assert size_bytes == begin + torch.Size(shape).numel() * dtype.itemsize, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_can_not_be_shared_has_a_reason() -> None:
    model, device = nn.ModuleDict({"a": nn.Linear(3, 4)}), torch.device("cuda", 0)
    assert "without the package cuda-bindings" in str(unshareable(model, device))
    model["a"].weight.data = model["a"].weight.data.t()
    assert unshareable(model, device) == "'a.weight' lies in several pieces"


def test_processes_find_each_other_where_nobody_else_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = images_directory()
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    with pytest.raises(DeviceError, match="nobody else's to read"):
        images_directory()
