"""Engines sleep and wake on a CPU: the same answers bit for bit, and memory that really goes. Real vLLM."""

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio
import torch
from tiny_models import make_tied
from vllm.pooling_params import PoolingParams

from deployments.errors import EngineBusyError, EngineUnavailableError, WakeError
from deployments.forked_engine import PoolAddress
from deployments.snapshot_builder import with_loader
from deployments.types import AdapterRef, EmbedRequest, GenerateRequest, ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.weights import rank_file
from tests.support.memory import children_pss_bytes, engines_own_bytes
from tests.support.service import ADAPTERS, CHAT_MODEL, EMBEDDING_MODEL, MODELS
from tests.support.snapshots import changed, describe, one_value_negated

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1200)]

TELL_EVERY = 50
CYCLES = int(os.environ.get("FLASHSERVE_SLEEP_CYCLES", "6"))
# What a heap may gain by chance; a leak of one layer's weights in every cycle would be many times this.
NOISE_BYTES = 32 << 20
KV_CACHE_BYTES = 64 << 20
CHAT = {"max_model_len": 512, "block_size": 32, "kv_cache_memory_bytes": KV_CACHE_BYTES}
# Longer than a block of the KV cache, so that there is something to cache.
PROMPT = [504, 3575, 282, 4649, 314] * 8


class Case(NamedTuple):
    spec: ModelSpec
    adapters: tuple[str, ...]
    kv_cache_bytes: int
    matrix: str  # one that vLLM packs


def chat_case(engine: dict[str, Any], *adapters: str) -> Case:
    spec = ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), CHAT | engine, lora_enabled=bool(adapters), max_loras=2)
    return Case(spec, adapters, KV_CACHE_BYTES, "model.layers.29.mlp.down_proj.weight")


WITH_ADAPTERS = chat_case({"dtype": "float32", "enforce_eager": True}, "pirate", "json")
# Small, since compiling takes as long as there are layers.
COMPILED = Case(
    ModelSpec("tiny", "", CHAT | {"dtype": "bfloat16", "max_model_len": 256, "skip_tokenizer_init": True}),
    (),
    KV_CACHE_BYTES,
    "model.layers.1.mlp.down_proj.weight",
)
EMBEDDING = Case(
    ModelSpec(EMBEDDING_MODEL, str(MODELS / EMBEDDING_MODEL), {"runner": "pooling", "enforce_eager": True}),
    (),
    0,
    "model.encoder.layer.5.output.dense.weight",
)
CASES = {"adapters": WITH_ADAPTERS, "compiled": COMPILED, "embedding": EMBEDDING}


def request(
    stream_id: str, adapter: str | None = None, *, prompt: list[int] = PROMPT, max_tokens: int = 4
) -> GenerateRequest:
    ref: AdapterRef | None = {"id": adapter, "path": str(ADAPTERS / adapter), "digest": adapter} if adapter else None
    return {
        "stream_id": stream_id,
        "model_id": CHAT_MODEL,
        "prompt_token_ids": prompt,
        "sampling": {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 3},
        "reply_to": {"host": "", "port": 0, "key": ""},
        "adapter": ref,
    }


@dataclass
class Sleeper:
    """An engine, its snapshot, and what its first sleep showed."""

    case: Case
    engine: VllmEngine
    snapshot: Path
    asked: int = 0
    answer: Any = None
    awake_bytes: int = 0
    asleep_bytes: int = 0
    cached_tokens: list[int | None] = field(default_factory=list)

    async def ask(self, prompt: list[int] = PROMPT) -> Any:
        """The answers of the model and of each adapter; remembers what came from the prefix cache."""
        self.asked += 1
        if "generate" not in self.engine.supported_tasks():
            embed: EmbedRequest = {
                "stream_id": f"e{self.asked}",
                "model_id": EMBEDDING_MODEL,
                "prompt_token_ids": [101, 4937, 102],
                "pooling": msgspec.to_builtins(PoolingParams(task="embed")),
            }
            return (await self.engine.embed(embed))["data"]
        answers = []
        self.cached_tokens = []
        for adapter in (None, *self.case.adapters):
            asking = request(f"{adapter}{self.asked}", adapter, prompt=prompt)
            deltas = [delta async for delta in self.engine.generate(asking)]
            self.cached_tokens.append(deltas[0].cached_tokens)
            # Joined: how many tokens come in one delta depends on who is in time.
            tokens = [token for delta in deltas for token in delta.token_ids]
            answers.append((tokens, [row for delta in deltas for row in delta.logprobs or ()]))
        return answers

    async def sleep_and_wake(self) -> None:
        await self.engine.sleep()
        await self.engine.wake(self.snapshot)


@pytest_asyncio.fixture(params=CASES, scope="module", loop_scope="module")
async def sleeper(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pool_address: PoolAddress
) -> AsyncIterator[Sleeper]:
    case = CASES[request.param]
    if not case.spec.path:
        case = case._replace(spec=replace(case.spec, path=str(make_tied(tmp_path_factory.mktemp("tiny")))))
    directory = tmp_path_factory.mktemp("snapshot")
    engine = VllmEngine(with_loader(case.spec, build=directory), pool_address)
    await engine.start()
    try:
        describe(case.spec, directory)
        sleeper = Sleeper(case, engine, directory)
        sleeper.answer = await sleeper.ask()
        sleeper.awake_bytes = children_pss_bytes()
        await engine.sleep()
        sleeper.asleep_bytes = children_pss_bytes()
        await engine.wake(directory)
        yield sleeper
    finally:
        await engine.stop()


async def test_weights_and_kv_cache_leave_memory(sleeper: Sleeper) -> None:
    weights_bytes = (sleeper.snapshot / rank_file(0)).stat().st_size
    # Give or take what the processes allocate meanwhile.
    assert sleeper.awake_bytes - sleeper.asleep_bytes + (1 << 20) >= weights_bytes + sleeper.case.kv_cache_bytes


async def test_it_answers_as_before_without_its_prefix_cache(sleeper: Sleeper) -> None:
    assert await sleeper.ask() == sleeper.answer
    begin_s = time.monotonic()
    await sleeper.sleep_and_wake()
    stages_s = sleeper.engine.start_report()["wake_stages_s"]
    assert list(stages_s) == ["map the snapshot", "pack weights", "ask the canary"]
    assert 0 < sum(stages_s.values()) < time.monotonic() - begin_s
    assert await sleeper.ask() == sleeper.answer
    assert not any(sleeper.cached_tokens)
    assert await sleeper.ask() == sleeper.answer
    assert all(sleeper.cached_tokens)


async def test_asleep_it_refuses_requests(sleeper: Sleeper) -> None:
    await sleeper.engine.sleep()
    with pytest.raises(EngineUnavailableError):
        await sleeper.ask()
    await sleeper.engine.wake(sleeper.snapshot)
    assert await sleeper.ask() == sleeper.answer


async def test_the_canary_notices_a_changed_weight(sleeper: Sleeper, tmp_path: Path) -> None:
    other = changed(sleeper.snapshot, tmp_path / "other", sleeper.case.matrix, one_value_negated)
    await sleeper.engine.sleep()
    with pytest.raises(WakeError, match="does not answer as before"):
        await sleeper.engine.wake(other)
    with pytest.raises(EngineUnavailableError):
        await sleeper.ask()
    await sleeper.engine.wake(sleeper.snapshot)
    assert await sleeper.ask() == sleeper.answer


async def test_a_snapshot_of_another_shape_is_refused(sleeper: Sleeper, tmp_path: Path) -> None:
    other = changed(sleeper.snapshot, tmp_path / "other", sleeper.case.matrix, torch.Tensor.t)
    await sleeper.engine.sleep()
    for wrong in (other, tmp_path / "nothing"):
        with pytest.raises(WakeError):
            await sleeper.engine.wake(wrong)
    await sleeper.engine.wake(sleeper.snapshot)
    assert await sleeper.ask() == sleeper.answer


@pytest.mark.parametrize("sleeper", ["adapters", "compiled"], indirect=True)
async def test_it_does_not_sleep_while_a_request_runs(sleeper: Sleeper) -> None:
    deltas = sleeper.engine.generate(request("long", max_tokens=40))
    received = [await anext(deltas)]
    with pytest.raises(EngineBusyError):
        await sleeper.engine.sleep()
    received += [delta async for delta in deltas]
    assert sum(len(delta.token_ids) for delta in received) == 40
    assert received[-1].finish_reason == "length"
    await sleeper.sleep_and_wake()
    assert await sleeper.ask() == sleeper.answer


@pytest.mark.timeout(1200 + 3 * CYCLES)
@pytest.mark.parametrize("sleeper", ["adapters"], indirect=True)
async def test_many_cycles_change_no_answer_and_keep_no_memory(sleeper: Sleeper) -> None:
    asleep_bytes = []
    short = PROMPT[:5]
    answer = await sleeper.ask(short)
    for cycle in range(CYCLES):
        await sleeper.engine.sleep()
        asleep_bytes.append(engines_own_bytes())
        await sleeper.engine.wake(sleeper.snapshot)
        assert await sleeper.ask(short) == answer
        if (cycle + 1) % TELL_EVERY == 0:
            print(f"{cycle + 1} of {CYCLES} cycles, asleep {asleep_bytes[-1] >> 20} MiB of its own", flush=True)
    assert await sleeper.ask() == sleeper.answer
    half = CYCLES // 2
    # The least of many: how much of the heap can be given back differs from sleep to sleep.
    assert min(asleep_bytes[half:]) - min(asleep_bytes[:half]) < NOISE_BYTES
