"""What engines take of a GPU, by vLLM's own account and the driver's; no GPU: those are replaced here."""

import os
from types import SimpleNamespace

import pynvml
import pytest
import torch
from vllm.config import CacheConfig
from vllm.device_allocator import AllocationData
from vllm.platforms import current_platform
from vllm.v1.engine.exceptions import EngineDeadError

from deployments import device_memory
from deployments.device_memory import CONTEXT_BYTES, devices_bytes, held_bytes, promised_bytes
from deployments.gpu_worker import SleepingGpuWorker
from deployments.types import ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.cuda import process_bytes

TOTAL_BYTES = 80 << 30
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(current_platform), "get_device_total_memory", lambda *_: TOTAL_BYTES)


def test_a_share_of_a_device_is_that_share_of_its_memory() -> None:
    assert devices_bytes(2) == 2 * TOTAL_BYTES
    assert devices_bytes(0.5) == TOTAL_BYTES // 2


def test_an_engine_is_promised_what_vllm_wants_to_be_free() -> None:
    assert promised_bytes(ModelSpec("a", "")) == int(TOTAL_BYTES * CacheConfig().gpu_memory_utilization)
    engine = {"gpu_memory_utilization": 0.25, "tensor_parallel_size": 2, "kv_cache_memory_bytes": 1 << 30}
    assert promised_bytes(ModelSpec("a", "", engine)) == TOTAL_BYTES // 2


def allocation(size_bytes: int, *, is_asleep: bool) -> AllocationData:
    return AllocationData((0, size_bytes, 0, 0), "weights", is_asleep=is_asleep)


def test_what_sleeps_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "process_bytes", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1000)
    awake = [allocation(600, is_asleep=False), allocation(300, is_asleep=False)]
    assert held_bytes(GPU, awake, 0) == CONTEXT_BYTES + 1000
    asleep = [allocation(600, is_asleep=True), allocation(300, is_asleep=True)]
    assert held_bytes(GPU, asleep, 0) == CONTEXT_BYTES + 100
    assert held_bytes(GPU, asleep, 50) == CONTEXT_BYTES + 150, "PyTorch knows nothing of what is shared"
    monkeypatch.setattr(device_memory, "process_bytes", lambda _: 777)
    assert held_bytes(GPU, asleep, 50) == 777, "the driver counts everything"


@pytest.mark.parametrize(("listed", "counted"), [("own", 5 << 30), ("another", None), ("untold", None)])
def test_the_driver_counts_a_process_that_it_knows(
    monkeypatch: pytest.MonkeyPatch, listed: str, counted: int | None
) -> None:
    process_id = os.getpid() + (listed == "another")
    process = SimpleNamespace(pid=process_id, usedGpuMemory=None if listed == "untold" else 5 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1-2"))
    for name in ("nvmlInit", "nvmlShutdown"):
        monkeypatch.setattr(pynvml, name, lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", {"GPU-1-2": "handle"}.__getitem__)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", {"handle": [process]}.__getitem__)
    assert process_bytes(GPU) == counted


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver_nothing_is_counted() -> None:
    assert process_bytes(GPU) is None


class Engine(VllmEngine):
    """On a GPU, with workers that answer."""

    def __init__(self, answers: list[int] | Exception) -> None:
        super().__init__(ModelSpec("a", "", device="gpu"))
        self.answers = answers
        self._llm = SimpleNamespace(collective_rpc=self.collective_rpc, errored=False)  # type: ignore[assignment]

    async def collective_rpc(self, method: str) -> list[int]:
        assert callable(getattr(SleepingGpuWorker, method))
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


async def test_an_engine_holds_what_its_workers_hold() -> None:
    assert await Engine([3, 4]).memory_bytes() == 7


@pytest.mark.parametrize("error", [EngineDeadError(), Exception("RuntimeError: CUDA error")], ids=["dead", "failed"])
async def test_an_engine_that_can_not_tell_holds_nothing(error: Exception) -> None:
    assert await Engine(error).memory_bytes() == 0
