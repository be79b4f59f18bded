"""Adapters that are kept as slots hold them answer as vLLM's own do, to the bit: with vLLM's worker beside ours."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.streams import TokenStreams
from deployments.errors import RequestRejectedError
from deployments.forked_engine import PoolAddress
from deployments.types import AdapterRef, AdapterSpec, ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.adapter_dram import AdapterDram
from tests.support.adapters import misaligned, random_tensors, safetensors, write_adapter
from tests.support.feeds import generate_request
from tests.support.service import CHAT_MODEL

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Fewer in the host cache than there are: the rest is loaded again within a step.
RANK, SLOTS, CACHED, TOKENS = 16, 2, 3, 3
# Served together, where that is what is tested.
MANY = 128
ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")
PROMPT = np.random.default_rng(0).integers(1000, 40_000, 24).tolist()
# Rank, lora_alpha and matrices: full and lower ranks, all and some matrices, scalings that round. Those of two are laid
# out in the file so that vLLM itself has to load them first.
KINDS: tuple[tuple[int, float, dict[str, Any]], ...] = (
    (16, 32, {}), (8, 8, {"leaves": ATTENTION}), (16, 21, {}), (12, 7, {}), (16, 16, {"leaves": ("mlp.down_proj",)}),
)  # fmt: skip
BY_VLLM = {1, 2}
STOCK = {"worker_cls": "auto", "scheduler_cls": None, "distributed_executor_backend": "mp"}

IN_FLOAT32 = pytest.mark.parametrize("engines", ["float32"], indirect=True)

# Tokens, and for each of them its log probability and those of the five likeliest.
Answer = tuple[list[int], list[float]]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, shallow: Path) -> list[AdapterRef]:
    """Named by what would be their content: only then other engines may have the same."""
    root, made = tmp_path_factory.mktemp("adapters"), []
    for number, (rank, alpha, leaves) in enumerate(KINDS):
        digest = f"{number + 1}" * 64
        weights = safetensors(random_tensors(shallow, number, rank, **leaves))
        weights = misaligned(weights) if number in BY_VLLM else weights
        path = write_adapter(root / digest, weights=weights, rank=rank, lora_alpha=alpha)
        made.append(AdapterRef(id=f"a{number}", path=str(path), digest=digest))
    return made


class Engines:
    """One whose adapters are packed, another as vLLM has it, and where the first keeps them."""

    def __init__(self, dtype: str, model: Path, dram: Path, pool: PoolAddress) -> None:
        engine = {
            "dtype": dtype, "enforce_eager": True, "max_model_len": 128, "kv_cache_memory_bytes": 64 << 20,
            "enable_prefix_caching": False,
        }  # fmt: skip
        spec = ModelSpec(CHAT_MODEL, str(model), engine, lora_enabled=True, max_lora_rank=RANK)
        self.dram = dram
        few = engine | {"max_cpu_loras": CACHED}
        ours = replace(spec, engine=few, max_loras=SLOTS, adapters_in=str(dram), adapters_bytes=1 << 30)
        self.packing = VllmEngine(ours, pool)
        # With a slot to spare: the fault that needs an empty one is not what is compared.
        self.stock = VllmEngine(replace(spec, engine=engine | STOCK, max_loras=len(KINDS) + 1), pool)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shallow: Path, pool_address: PoolAddress
) -> AsyncIterator[Engines]:
    made = Engines(request.param, shallow, tmp_path_factory.mktemp("dram"), pool_address)
    await asyncio.gather(made.packing.start(), made.stock.start())
    yield made
    await asyncio.gather(made.packing.stop(), made.stock.stop())


async def answer(
    engine: VllmEngine, adapter: AdapterRef | None, name: str = "one", prompt: Sequence[int] = PROMPT
) -> Answer:
    request = generate_request(TokenStreams(), name, max_tokens=TOKENS, logprobs=5, ignore_eos=True)
    tokens: list[int] = []
    logprobs: list[float] = []
    async for delta in engine.generate(request | {"prompt_token_ids": list(prompt), "adapter": adapter}):  # type: ignore[arg-type]
        tokens += delta.token_ids
        logprobs += [value for _, values, _ in delta.logprobs or [] for value in values]
    return tokens, logprobs


async def forget(engine: VllmEngine, adapters: Sequence[AdapterRef]) -> None:
    engine.keep_adapters([AdapterSpec(each["id"], each["path"], each["digest"]) for each in adapters])
    engine.keep_adapters([])
    await engine._adapters.settled()
    assert await engine.adapters() == []


@pytest.mark.parametrize("engines", ["float32", "bfloat16"], indirect=True)
async def test_they_answer_as_vllms_own(engines: Engines, adapters: list[AdapterRef]) -> None:
    """Packed from files or by vLLM, copied from the host cache, and mapped from dram, into slots that others had."""
    expected = [await answer(engines.stock, adapter) for adapter in (None, *adapters)]
    assert len({tuple(logprobs) for _, logprobs in expected}) == len(expected)
    assert all(len(logprobs) == 6 * TOKENS for _, logprobs in expected)
    for adapter, its in zip(adapters, expected[1:], strict=True):
        assert await answer(engines.packing, adapter) == its
    assert AdapterDram(engines.dram, 0).digests() == {Path(adapter["path"]).name for adapter in adapters}
    # In another order: whatever a slot had before, only the adapter itself is left.
    for index in (3, 0, 1, 2, 4, 1, 3, 2, 0, 4):
        assert await answer(engines.packing, adapters[index]) == expected[1 + index]
        assert await answer(engines.packing, None) == expected[0]
    await forget(engines.packing, adapters)
    for index in (4, 2, 0, 3, 1):
        assert await answer(engines.packing, adapters[index]) == expected[1 + index]


@IN_FLOAT32
async def test_where_they_are_is_told(engines: Engines, adapters: list[AdapterRef]) -> None:
    await forget(engines.packing, adapters)
    digests = [adapter["digest"] for adapter in adapters]
    engines.packing.keep_adapters([AdapterSpec(each["id"], each["path"], each["digest"]) for each in adapters])
    for adapter in adapters[:4]:
        await answer(engines.packing, adapter)
    places = await engines.packing.adapter_places()
    assert places.slots == set(digests[2:4])
    assert places.host == set(digests[1:4])
    assert places.dram >= set(digests[:4])
    await answer(engines.packing, adapters[0])
    assert (await engines.packing.adapter_places()).slots == {digests[0], digests[3]}
    # Ahead of requests: one that vLLM has let go since, and one that is there and is now the last to go.
    for adapter in (adapters[1], adapters[3]):
        await engines.packing.preload_adapter(adapter)
    places = await engines.packing.adapter_places()
    assert places.slots == {digests[1], digests[3]}
    assert places.host == {digests[0], digests[1], digests[3]}
    engines.packing.keep_adapters([])
    await engines.packing._adapters.settled()
    assert (await engines.packing.adapter_places()).host == set()


@IN_FLOAT32
async def test_in_one_batch_with_the_base_model(engines: Engines, adapters: list[AdapterRef]) -> None:
    """In float32: in bfloat16 near-ties depend on what else is in the batch, also in vLLM's own."""
    asked = (adapters[0], None, adapters[2], None, adapters[0])
    alone = [await answer(engines.stock, adapter) for adapter in asked]
    first = [logprobs[0] for _, logprobs in alone[:3]]
    assert min(abs(one - other) for one, other in combinations(first, 2)) > 0.005, "to be told apart"
    for engine in (engines.stock, engines.packing):
        together = await asyncio.gather(*(answer(engine, adapter, str(n)) for n, adapter in enumerate(asked)))
        for (tokens, logprobs), (its_tokens, its_logprobs) in zip(together, alone, strict=True):
            assert tokens == its_tokens
            assert logprobs == pytest.approx(its_logprobs, abs=1e-3)


@contextmanager
def out_of_the_way(path: Path) -> Iterator[None]:
    aside = path.rename(path.with_suffix(".aside"))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        aside.rename(path)


@IN_FLOAT32
async def test_what_is_in_dram_needs_no_files(engines: Engines, adapters: list[AdapterRef]) -> None:
    its = await answer(engines.packing, adapters[0])
    await forget(engines.packing, adapters)
    directory = Path(adapters[0]["path"])
    with out_of_the_way(directory / "adapter_model.safetensors"):
        assert await answer(engines.packing, adapters[0]) == its
        await forget(engines.packing, adapters)
        AdapterDram(engines.dram, 0).remove(directory.name)
        with pytest.raises(RequestRejectedError):
            await answer(engines.packing, adapters[0])
    assert await answer(engines.packing, adapters[0]) == its


@IN_FLOAT32
async def test_what_dram_cannot_take_is_kept_by_the_engine(engines: Engines, adapters: list[AdapterRef]) -> None:
    its = await answer(engines.packing, adapters[2])
    await forget(engines.packing, adapters)
    (layout,) = (path for path in await asyncio.to_thread(lambda: list(engines.dram.iterdir())) if len(path.name) > 8)
    with out_of_the_way(layout):
        # Not by its rights: whoever is root may write anywhere.
        await asyncio.to_thread(layout.touch)
        for index in (2, 0, 1, 2):
            found = await answer(engines.packing, adapters[index])
        assert found == its


@IN_FLOAT32
async def test_many_at_once_answer_as_peft_merges_them(
    engines: Engines, tmp_path_factory: pytest.TempPathFactory, shallow: Path
) -> None:
    """Each with a prompt of its own; each token is the likeliest of the merged model, given those before.

    In float32: in bfloat16 what is likeliest depends on when it was rounded.
    """
    root, refs, random = tmp_path_factory.mktemp("many"), [], np.random.default_rng(1)
    prompts = [random.integers(1000, 40_000, random.integers(8, 40)).tolist() for _ in range(MANY)]
    for number in range(MANY):
        digest = f"{number + 100:064d}"
        tensors = random_tensors(shallow, number, 4, ATTENTION, 0.1)
        leaves = [leaf.rpartition(".")[2] for leaf in ATTENTION]
        path = write_adapter(root / digest, tensors, rank=4, lora_alpha=12, target_modules=leaves)
        refs.append(AdapterRef(id=f"many{number}", path=str(path), digest=digest[::-1]))
    asked = zip(refs, prompts, strict=True)
    answers = await asyncio.gather(*(answer(engines.packing, ref, ref["id"], prompt) for ref, prompt in asked))
    assert len({tuple(logprobs) for _, logprobs in answers}) == len(refs)
    for ref, prompt, (tokens, _) in zip(refs, prompts, answers, strict=True):
        behind = await asyncio.to_thread(behind_the_likeliest, shallow, Path(ref["path"]), prompt, tokens)
        assert behind == pytest.approx([0.0] * TOKENS, abs=1e-3), ref["id"]
    await forget(engines.packing, refs)


@cache
def base_model(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def behind_the_likeliest(model: Path, adapter: Path, prompt: list[int], tokens: list[int]) -> list[float]:
    """By how much the merged model's logit of each token is below its largest one."""
    merged = PeftModel.from_pretrained(base_model(model), adapter)
    merged.merge_adapter()
    try:
        with torch.inference_mode():
            logits = merged(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    finally:
        merged.unmerge_adapter()
        merged.unload()
    return [float(row.max() - row[token]) for row, token in zip(logits, tokens, strict=True)]
