"""Resumed requests go on token for token as undisturbed ones: real vLLM in float32, where any difference is a fault."""

import asyncio
import json
import random
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from deployments.errors import ResumeUnsupportedError
from deployments.forked_engine import PoolAddress
from deployments.types import GenerateRequest, ModelSpec
from deployments.vllm_engine import VllmEngine
from deployments.wire import TokenDelta
from tests.support.resumed_cases import KINDS, Answer, Asking, breaks
from tests.support.service import CHAT_MODEL, MODELS

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_TOKENS = 40
SPEC = ModelSpec(
    CHAT_MODEL,
    str(MODELS / CHAT_MODEL),
    # So little that prompts are computed in parts, and that requests which run together have to preempt each other.
    {
        "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "block_size": 32,
        "kv_cache_memory_bytes": 40 << 20, "max_num_batched_tokens": 64, "max_num_seqs": 16,
    },
    lora_enabled=True,
    max_loras=2,
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(pool_address: PoolAddress) -> AsyncIterator[VllmEngine]:
    made = VllmEngine(SPEC, pool_address)
    await made.start()
    yield made
    assert made.unfinished() == 0
    await made.stop()


@pytest.fixture(scope="module")
def asking(engine: VllmEngine) -> Asking:
    return Asking(engine, MAX_TOKENS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(asking: Asking) -> dict[str, Answer]:
    """Every kind's undisturbed answer; they run together."""
    answers = await asyncio.gather(*(asking.undisturbed(kind) for kind in KINDS))
    return dict(zip(KINDS, answers, strict=True))


async def test_the_kinds_are_what_they_say(whole: dict[str, Answer], asking: Asking) -> None:
    assert whole["the model's own end"].finish_reason == "stop"
    assert len(whole["min_tokens"].token_ids) > 30 > len(whole["the model's own end"].token_ids)
    assert whole["stop token"].stop_reason == 30
    assert set(json.loads(asking.tokenizer.decode(whole["JSON schema"].token_ids, True))) == {"name", "age", "hobbies"}
    assert "<tool_call>" in asking.tokenizer.decode(whole["tool call"].token_ids)
    different = {tuple(answer.token_ids) for kind, answer in whole.items() if kind != "log probabilities"}
    assert len(different) == len(KINDS) - 1, "each parameter makes a difference, or its test would show nothing"


async def test_it_goes_on_as_if_nothing_had_happened(whole: dict[str, Answer], asking: Asking) -> None:
    rng = random.Random(0)  # noqa: S311
    # One to four times, and each number with requests of every sort.
    counts = {kind: 1 + index % 4 for index, kind in enumerate(whole)}
    places = {kind: breaks(len(answer.token_ids), counts[kind], rng) for kind, answer in whole.items()}
    answers = await asyncio.gather(*(asking.broken(kind, places[kind], rng) for kind in KINDS))
    for kind, answer in zip(KINDS, answers, strict=True):
        undisturbed = whole[kind]
        assert answer.token_ids == undisturbed.token_ids, f"{kind}, broken after {places[kind]}"
        assert (answer.finish_reason, answer.stop_reason) == (undisturbed.finish_reason, undisturbed.stop_reason), kind
        assert len(answer.logprobs) == len(undisturbed.logprobs)
        for row, expected in zip(answer.logprobs, undisturbed.logprobs, strict=True):
            assert row[0] == expected[0]
            assert row[1] == pytest.approx(expected[1], abs=1e-3)
            assert row[2] == expected[2]


async def test_alone_and_at_every_place(whole: dict[str, Answer], asking: Asking) -> None:
    kind = "seed, everything"
    expected = whole[kind].token_ids
    for place in range(0, len(expected), 20):
        answer = await asking.broken(kind, [place], random.Random(place))  # noqa: S311
        assert answer.token_ids == expected, place


async def test_a_seeded_prompt_that_is_computed_in_parts_needs_no_break(asking: Asking, engine: VllmEngine) -> None:
    """vLLM alone would end the engine: it takes samples of unfinished prompts back in a way that CPUs don't have."""
    request = asking.request("seed", [], None)
    request["prompt_token_ids"] *= 4
    request["sampling"]["max_tokens"] = 8
    assert len(request["prompt_token_ids"]) > SPEC.engine["max_num_batched_tokens"]
    first = [token for delta in [d async for d in engine.generate(request)] for token in delta.token_ids]
    again = request | {"stream_id": "again", "delivered_token_ids": first[:3]}
    rest = [token for delta in [d async for d in engine.generate(again)] for token in delta.token_ids]
    assert first[:3] + rest == first


@pytest.mark.parametrize("kind", ["greedy", "the model's own end", "stop token"])
async def test_what_had_ended_ends_at_once(
    whole: dict[str, Answer], asking: Asking, engine: VllmEngine, kind: str
) -> None:
    answer = whole[kind]
    [delta] = [delta async for delta in engine.generate(asking.request(kind, answer.token_ids, None))]
    assert delta.token_ids == []
    assert (delta.finish_reason, delta.stop_reason) == (answer.finish_reason, answer.stop_reason)


async def test_tokens_that_do_not_fit_the_grammar_are_an_error_and_harm_nobody(
    asking: Asking, engine: VllmEngine, whole: dict[str, Answer]
) -> None:
    request = asking.request("JSON schema", whole["greedy"].token_ids[:5], None)
    [delta] = [delta async for delta in engine.generate(request)]
    assert delta.finish_reason == "error"
    assert (await asking.undisturbed("greedy")).token_ids == whole["greedy"].token_ids


async def test_what_was_counted_is_not_counted_again(asking: Asking, engine: VllmEngine) -> None:
    request = asking.request("greedy", [], None)
    request["sampling"] |= {"prompt_logprobs": 1, "max_tokens": 4}
    request["adapter"] = None
    before = [delta async for delta in engine.generate(request)]
    assert before[0].cached_tokens is not None
    resumed = request | {"stream_id": "resumed", "delivered_token_ids": before[0].token_ids}
    async for delta in engine.generate(resumed):
        assert delta.cached_tokens is None
        assert delta.prompt_logprobs is None


async def test_an_engine_that_can_not_says_so(engine: VllmEngine, asking: Asking) -> None:
    gpu = VllmEngine(ModelSpec(CHAT_MODEL, "", device="gpu"))
    gpu._llm = engine._llm
    with pytest.raises(ResumeUnsupportedError, match="model runner V2"):
        await anext(gpu.generate(asking.request("greedy", [1], None)))


async def test_what_waits_in_the_engine_goes_in_the_order_of_its_rank(engine: VllmEngine, asking: Asking) -> None:
    """Thrice as many as it computes at once come in the opposite order, and then one that goes before them all."""
    order: list[int] = []
    begun = asyncio.Event()

    async def ask(name: str, rank: int) -> None:
        request: GenerateRequest = {
            "stream_id": name, "model_id": CHAT_MODEL, "reply_to": {"host": "", "port": 0, "key": ""},
            "prompt_token_ids": asking.tokenizer.encode(f"{name}: once upon a time"), "priority": rank,
            "sampling": {"max_tokens": 24, "ignore_eos": True, "temperature": 0.0},
        }  # fmt: skip
        deltas = [delta async for delta in marked(engine.generate(request), rank)]
        assert sum(len(delta.token_ids) for delta in deltas) == 24

    async def marked(deltas: AsyncIterator[TokenDelta], rank: int) -> AsyncIterator[TokenDelta]:
        async for delta in deltas:
            if rank not in order:
                order.append(rank)
            begun.set()
            yield delta

    # As ranks are: milliseconds since 1970.
    first = 1_800_000_000_000
    flood = [asyncio.ensure_future(ask(f"flood {index}", first + 1000 * (48 - index))) for index in range(48)]
    await begun.wait()
    await ask("other", first)
    await asyncio.gather(*flood)
    assert order.index(first) < 30
    waited = [rank for rank in order[20:] if rank != first]
    assert np.mean(waited[: len(waited) // 2]) < np.mean(waited[len(waited) // 2 :])
