"""Engines that compute from one mapped copy of their weights: what each has for itself, and that all answer alike."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deployments.forked_engine import PoolAddress
from deployments.snapshot_builder import with_loader
from deployments.types import AdapterRef, GenerateRequest, ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.weights import rank_file
from tests.support.adapters import random_tensors, safetensors, write_adapter
from tests.support.memory import children_pss_bytes
from tests.support.service import CHAT_MODEL
from tests.support.snapshots import describe

pytestmark = pytest.mark.asyncio(loop_scope="module")

KV_CACHE_BYTES = 32 << 20
ENGINE = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "kv_cache_memory_bytes": KV_CACHE_BYTES,
    "enable_prefix_caching": False,
}  # fmt: skip
PROMPT = [504, 3575, 282, 4649, 314] * 8
# oneDNN adds up in another order than what multiplies with matrices that aren't packed.
CLOSE = {"abs": 1e-3}


async def answers(engine: VllmEngine, adapter: AdapterRef) -> tuple[list[int], list[float]]:
    """Of the model and of an adapter on it: tokens, and the log probability of each."""
    tokens: list[int] = []
    logprobs: list[float] = []
    for name, chosen in (("base", None), ("adapter", adapter)):
        request: GenerateRequest = {
            "stream_id": name,
            "model_id": CHAT_MODEL,
            "prompt_token_ids": PROMPT,
            "sampling": {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, "logprobs": 1},
            "reply_to": {"host": "", "port": 0, "key": ""},
            "adapter": chosen,
        }
        async for delta in engine.generate(request):
            tokens += delta.token_ids
            logprobs += [values[0] for _, values, _ in delta.logprobs or []]
    return tokens, logprobs


def shallow_adapter(directory: Path, model: Path) -> AdapterRef:
    write_adapter(directory, weights=safetensors(random_tensors(model, 1, 8)), rank=8, lora_alpha=16)
    return {"id": "one", "path": str(directory), "digest": "one"}


@dataclass
class Packed:
    """What engines with copies of their own came to: the snapshot of one, and the memory of one more."""

    spec: ModelSpec
    adapter: AdapterRef
    snapshot: Path
    answers: Any
    more_bytes: int

    @property
    def shared(self) -> ModelSpec:
        """How an engine is started that computes from the snapshot."""
        return with_loader(replace(self.spec, shares_weights=True), snapshot=self.snapshot)

    @property
    def weights_bytes(self) -> int:
        return (self.snapshot / rank_file(0)).stat().st_size


@asynccontextmanager
async def running(spec: ModelSpec, pool: PoolAddress) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(spec, pool)
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def packed(tmp_path_factory: pytest.TempPathFactory, shallow: Path, pool_address: PoolAddress) -> Packed:
    directory = tmp_path_factory.mktemp("snapshot")
    spec = ModelSpec(CHAT_MODEL, str(shallow), ENGINE, lora_enabled=True, max_loras=2)
    adapter = shallow_adapter(tmp_path_factory.mktemp("adapter"), shallow)
    async with running(with_loader(spec, build=directory), pool_address) as engine:
        describe(spec, directory)
        expected = await answers(engine, adapter)
        restored = with_loader(replace(spec, id="another"), snapshot=directory)
        before_bytes = children_pss_bytes()
        async with running(restored, pool_address) as another:
            assert await answers(another, adapter) == expected
            return Packed(spec, adapter, directory, expected, children_pss_bytes() - before_bytes)


async def test_they_answer_as_one_with_a_copy_and_have_none(packed: Packed, pool_address: PoolAddress) -> None:
    async with running(packed.shared, pool_address) as one:
        await answered_alike(one, packed)
        before_bytes = children_pss_bytes()
        async with running(replace(packed.shared, id="another"), pool_address) as other:
            await answered_alike(other, packed)
            more_bytes = children_pss_bytes() - before_bytes
    assert more_bytes < packed.more_bytes - 0.9 * packed.weights_bytes


async def answered_alike(engine: VllmEngine, packed: Packed) -> None:
    tokens, logprobs = await answers(engine, packed.adapter)
    expected_tokens, expected_logprobs = packed.answers
    assert tokens == expected_tokens
    assert logprobs == pytest.approx(expected_logprobs, **CLOSE)


async def test_it_sleeps_and_wakes_as_it_was(packed: Packed, pool_address: PoolAddress) -> None:
    async with running(packed.shared, pool_address) as engine:
        before, before_bytes = await answers(engine, packed.adapter), children_pss_bytes()
        await engine.sleep()
        await engine.wake(packed.snapshot)
        assert await answers(engine, packed.adapter) == before
        assert children_pss_bytes() - before_bytes < 0.1 * packed.weights_bytes
