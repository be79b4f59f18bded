"""A real engine's adapters: taken over while requests run, unloaded with their memory, refused before they do harm."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from app.streams import TokenStreams
from deployments.adapters import engine_name, ref_of
from deployments.errors import RequestRejectedError
from deployments.forked_engine import PoolAddress
from deployments.snapshot_builder import with_loader
from deployments.types import AdapterSpec, GenerateRequest, ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.adapter_files import AdapterFiles
from tests.support.adapters import random_tensors, safetensors, write_adapter
from tests.support.feeds import generate_request
from tests.support.service import ADAPTERS, CHAT_MODEL, MODELS
from tests.support.snapshots import describe
from tests.support.tiny_models import SHALLOW_LAYERS

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_LORAS, MAX_CPU_LORAS, RANK = 2, 4, 64
MIB = 1 << 20
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SPEC = ModelSpec(
    CHAT_MODEL,
    "",
    {
        "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "kv_cache_memory_bytes": 64 << 20,
        "max_cpu_loras": MAX_CPU_LORAS,
    },
    lora_enabled=True,
    max_loras=MAX_LORAS,
    max_lora_rank=RANK,
)  # fmt: skip
BASE = json.loads((MODELS / CHAT_MODEL / "config.json").read_text()) | {"num_hidden_layers": SHALLOW_LAYERS}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engine writes its weights when it starts."""
    return tmp_path_factory.mktemp("snapshot")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(pool_address: PoolAddress, snapshot: Path, shallow: Path) -> AsyncIterator[VllmEngine]:
    spec = replace(SPEC, path=str(shallow))
    made = VllmEngine(with_loader(spec, build=snapshot), pool_address)
    await made.start()
    describe(spec, snapshot)
    yield made
    assert made.unfinished() == 0
    await made.stop()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, shallow: Path) -> tuple[Path, Path]:
    """Where two adapters come from that answer differently, and not as the model."""
    root = tmp_path_factory.mktemp("sources")
    one, other = (
        write_adapter(root / f"{seed}", random_tensors(shallow, seed, 8, spread=0.1), rank=8) for seed in (1, 2)
    )
    return one, other


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return AdapterFiles(tmp_path / "disk")


def taken(files: AdapterFiles, source: Path, name: str) -> AdapterSpec:
    """An adapter as it is registered, at its copy."""
    found = files.take(name, str(source), BASE, RANK)
    held = files.use(found.digest, found.path)
    held.close()
    return AdapterSpec(name, str(held.directory), found.digest)


def ask(name: str, adapter: AdapterSpec | None, **sampling: object) -> GenerateRequest:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / CHAT_MODEL)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    request = generate_request(TokenStreams(), name, **({"max_tokens": 12} | sampling))  # type: ignore[arg-type]
    return request | {"prompt_token_ids": list(prompt), "adapter": None if adapter is None else ref_of(adapter)}  # type: ignore[return-value]


async def answer(engine: VllmEngine, adapter: AdapterSpec | None, name: str = "one") -> list[int]:
    return [
        token for delta in [each async for each in engine.generate(ask(name, adapter))] for token in delta.token_ids
    ]


async def left_with(engine: VllmEngine, *adapters: AdapterSpec) -> None:
    engine.keep_adapters(adapters)
    await engine._adapters.settled()
    assert await engine.adapters() == sorted(engine_name(ref_of(adapter)) for adapter in adapters)


async def test_it_answers_as_the_one_that_is_used_where_it_is(
    engine: VllmEngine, files: AdapterFiles, sources: tuple[Path, Path]
) -> None:
    base = await answer(engine, None)
    for source in sources:
        adapter = taken(files, source, f"{source.name}-registered")
        as_configured = AdapterSpec(source.name, str(source), adapter.digest)
        answers = await asyncio.gather(
            answer(engine, adapter, "r"), answer(engine, as_configured, "c"), answer(engine, None, "b")
        )
        assert answers[0] == answers[1] != answers[2] == base
        engine.keep_adapters([as_configured, adapter])
    await left_with(engine)


async def test_the_base_model_stays_itself_beside_as_many_adapters_as_there_are_slots(
    engine: VllmEngine, files: AdapterFiles, sources: tuple[Path, Path]
) -> None:
    """vLLM's CPU kernels would give its rows the adapter of the last slot."""
    adapters = [taken(files, source, f"slot-{source.name}") for source in sources]
    assert len(adapters) == MAX_LORAS
    alone = [await answer(engine, adapter) for adapter in (None, *adapters)]
    asked = (adapters[0], None, adapters[1], None)
    together = await asyncio.gather(*(answer(engine, adapter, str(index)) for index, adapter in enumerate(asked)))
    assert list(together) == [alone[1], alone[0], alone[2], alone[0]]
    assert len({tuple(tokens) for tokens in together}) == 3
    engine.keep_adapters(adapters)
    await left_with(engine)


async def test_a_new_version_takes_over_without_the_olds_cache(
    engine: VllmEngine, files: AdapterFiles, sources: tuple[Path, Path]
) -> None:
    old, new = (taken(files, source, "same") for source in sources)
    alone = {adapter.digest: await answer(engine, adapter) for adapter in (old, new)}
    engine.keep_adapters([old, new])
    await left_with(engine, old)
    running = engine.generate(ask("running", old))
    begun = (await anext(running)).token_ids
    engine.keep_adapters([new])
    first = await anext(fresh := engine.generate(ask("fresh", new)))
    # Both are asked the same: the new one may know its own from above, and never the old one's.
    assert (
        first.token_ids + [token for delta in [d async for d in fresh] for token in delta.token_ids]
        == alone[new.digest]
    )
    assert len(await engine.adapters()) == 2, "requests of the old one are not done"
    assert begun + [token for delta in [d async for d in running] for token in delta.token_ids] == alone[old.digest]
    await engine._adapters.settled()
    assert await engine.adapters() == [engine_name(ref_of(new))]
    shutil.rmtree(old.path)
    assert await answer(engine, new) == alone[new.digest]
    await left_with(engine)


def write_large(path: Path, model: Path, seed: int) -> Path:
    """As large as the engine takes: 15 MiB in float32."""
    return write_adapter(path, random_tensors(model, seed, RANK), rank=RANK, lora_alpha=16)


async def test_memory_goes_back_with_them(
    engine: VllmEngine, files: AdapterFiles, shallow: Path, tmp_path: Path
) -> None:
    large = [
        await asyncio.to_thread(write_large, tmp_path / f"large{index}", shallow, index)
        for index in range(MAX_CPU_LORAS)
    ]
    adapters = [taken(files, source, source.name) for source in large]
    # What an engine takes only once, for its first ones.
    for adapter in adapters[:MAX_LORAS]:
        await answer(engine, adapter)
    engine.keep_adapters(adapters)
    await left_with(engine)
    before = await engine.memory_bytes()
    engine.keep_adapters(adapters)
    for adapter in adapters:
        await answer(engine, adapter)
    loaded = await engine.memory_bytes()
    await left_with(engine, *adapters)
    await left_with(engine)
    after = await engine.memory_bytes()
    one = (large[0] / "adapter_model.safetensors").stat().st_size
    grown, stay = loaded - before, after - before
    print(f"{grown / MIB:.1f} MiB for {MAX_CPU_LORAS} of {one / MIB:.1f} each, {stay / MIB:.1f} stay")
    assert grown > 0.9 * MAX_CPU_LORAS * one
    # What the allocator keeps; less than one of them.
    assert stay < one


async def test_one_that_does_not_fit_ends_no_engine(engine: VllmEngine, tmp_path: Path) -> None:
    """Should one slip through: whatever vLLM makes of it must not reach a batch."""
    running = engine.generate(ask("running", None))
    first = await anext(running)
    config = (ADAPTERS / "pirate" / "adapter_config.json").read_bytes()
    for weights in (b"nothing", safetensors({"base_model.model.a.lora_A.weight": np.zeros((8, 7), np.float32)})):
        path = tmp_path / str(len(weights))
        path.mkdir()
        (path / "adapter_config.json").write_bytes(config)
        (path / "adapter_model.safetensors").write_bytes(weights)
        with pytest.raises(RequestRejectedError, match="does not fit the model") as caught:
            await answer(engine, AdapterSpec("bad", str(path), str(len(weights)) * 16), "bad")
        assert str(tmp_path) not in str(caught.value)
    deltas = [first, *[delta async for delta in running]]
    assert deltas[-1].finish_reason is not None
    assert await engine.adapters() == []
    engine.check()


async def test_asleep_it_waits_and_is_gone_when_it_wakes(
    engine: VllmEngine, files: AdapterFiles, sources: tuple[Path, Path], snapshot: Path
) -> None:
    adapter = taken(files, sources[0], "sleeper")
    engine.keep_adapters([adapter])
    before = await answer(engine, adapter)
    await engine.sleep()
    engine.keep_adapters([])
    await engine._adapters.settled()
    assert await engine.adapters() == [engine_name(ref_of(adapter))]
    await engine.wake(snapshot)
    assert await engine.adapters() == []
    assert await answer(engine, adapter) == before
    engine.keep_adapters([adapter])
    await left_with(engine)
