"""An engine of two ranks: each has a shard of its own in the snapshot, from which it starts and wakes. Real vLLM."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from deployments.forked_engine import PoolAddress
from deployments.snapshot_builder import with_loader
from deployments.types import GenerateRequest, ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.weights import rank_file
from tests.support.snapshots import describe
from tests.support.tiny_models import make_tied

pytestmark = pytest.mark.asyncio(loop_scope="module")

RANKS = 2
ENGINE = {
    "tensor_parallel_size": RANKS, "dtype": "float32", "enforce_eager": True, "max_model_len": 256,
    "kv_cache_memory_bytes": 16 << 20, "skip_tokenizer_init": True,
}  # fmt: skip


@dataclass
class Built:
    """A model in two ranks: its snapshot, and what the engine that made it answered."""

    spec: ModelSpec
    snapshot: Path
    answer: list[int]


@asynccontextmanager
async def running(spec: ModelSpec, pool: PoolAddress) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(spec, pool)
    with pytest.MonkeyPatch.context() as patch:
        # vLLM gives each rank a NUMA node of its own, unless it is told which cores.
        patch.setenv(
            "VLLM_CPU_OMP_THREADS_BIND", "|".join(str(core) for core in sorted(os.sched_getaffinity(0))[:RANKS])
        )
        await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def answer(engine: VllmEngine) -> list[int]:
    request: GenerateRequest = {
        "stream_id": "one",
        "model_id": "tiny",
        "prompt_token_ids": [504, 3575, 282, 4649, 314] * 8,
        "sampling": {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True},
        "reply_to": {"host": "", "port": 0, "key": ""},
    }
    return [token async for delta in engine.generate(request) for token in delta.token_ids]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def built(tmp_path_factory: pytest.TempPathFactory, pool_address: PoolAddress) -> Built:
    spec = ModelSpec("tiny", str(make_tied(tmp_path_factory.mktemp("tiny"))), ENGINE)
    snapshot = tmp_path_factory.mktemp("snapshot")
    async with running(with_loader(spec, build=snapshot), pool_address) as engine:
        said = await answer(engine)
    describe(spec, snapshot)
    return Built(spec, snapshot, said)


def test_each_rank_has_its_shard(built: Built) -> None:
    sizes = [(built.snapshot / rank_file(rank)).stat().st_size for rank in range(RANKS)]
    whole = (Path(built.spec.path) / "model.safetensors").stat().st_size
    assert all(0.4 * whole < size < 0.7 * whole for size in sizes)
    assert (built.snapshot / rank_file(0)).read_bytes() != (built.snapshot / rank_file(1)).read_bytes()


async def test_it_starts_from_the_shards_sleeps_and_wakes(built: Built, pool_address: PoolAddress) -> None:
    async with running(with_loader(built.spec, snapshot=built.snapshot), pool_address) as engine:
        assert await answer(engine) == built.answer
        await engine.sleep()
        await engine.wake(built.snapshot)
        assert await answer(engine) == built.answer
