"""Sequences outlive engines and replicas: vLLM's own text classes over the gateway's client, with fake engines."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind

from app.engine_client import RemoteEngineClient
from deployments.errors import EngineDiedError, RequestRejectedError
from deployments.fake_engine import FakeEngine
from deployments.types import GenerateRequest
from deployments.wire import TokenDelta
from tests.support.fake_pool import COUNT, Pool, Reading
from tests.support.service import CHAT_MODEL


async def running(pool: Pool) -> None:
    async with asyncio.timeout(10):
        while not pool.engines or not pool.engines[-1].running:  # noqa: ASYNC110 - engines announce nothing
            await asyncio.sleep(0.001)


async def test_an_engine_that_dies_is_not_noticed(pool: Pool, client: RemoteEngineClient) -> None:
    undisturbed = await Reading(client).read()
    reading = await Reading(client).read(at_least=10)
    pool.engines[-1].die()
    await reading.read()
    assert reading.token_ids == undisturbed.token_ids == {0: reading.whole()}
    assert reading.text == undisturbed.text
    assert reading.finish_reasons == {0: "length"}
    assert len(pool.engines) == 2
    delivered = pool.asked[-1]["delivered_token_ids"]
    assert len(delivered) >= 10
    assert delivered == reading.whole(len(delivered))
    assert pool.asked[-1]["stream_id"] != pool.asked[-2]["stream_id"]


async def test_nor_is_a_replica(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client).read(at_least=10)
    await pool.kill_replica()
    await reading.read()
    assert reading.token_ids == {0: reading.whole()}
    assert len(pool.replicas) == 2


async def test_nor_is_a_replica_that_nothing_reaches_any_more(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client).read(at_least=10)
    pool.cut_off()
    await reading.read()
    assert reading.token_ids == {0: reading.whole()}
    assert len(pool.asked) == 2
    assert pool.asked[1]["stream_id"] == pool.asked[0]["stream_id"] + "~2"


async def test_nor_are_many_of_both(pool: Pool, client: RemoteEngineClient) -> None:
    reading = Reading(client, n=3, temperature=1.0)
    for at_least in range(5, 55, 5):
        await reading.read(at_least)
        if at_least % 2:
            pool.engines[-1].die()
        else:
            await pool.kill_replica()
    await reading.read()
    assert reading.token_ids == dict.fromkeys(range(3), reading.whole())
    assert reading.finish_reasons == dict.fromkeys(range(3), "length")


async def test_a_replica_that_is_shut_down_is_not_noticed_either(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client).read(at_least=10)
    leaving = pool.replicas[-1]
    pool.begin()
    await leaving.close()
    await reading.read()
    assert reading.token_ids == {0: reading.whole()}


async def test_a_request_that_waits_when_its_replica_is_shut_down_is_served_by_the_next(
    pool: Pool, client: RemoteEngineClient
) -> None:
    pool.may_start.clear()
    await pool.kill_replica()
    reading = asyncio.ensure_future(Reading(client).read())
    await pool.asked_times(1)
    waited_at = pool.replicas[-1]
    pool.begin()
    await waited_at.close()
    pool.may_start.set()
    read = await reading
    assert len(pool.asked) == 2
    assert read.token_ids == {0: read.whole()}


async def test_tokens_of_a_lost_attempt_that_come_late_are_nobodys(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client).read(at_least=5)
    lost_id = pool.asked[-1]["stream_id"]
    pool.engines[-1].die()
    await reading.read(at_least=COUNT - 10)
    # The feed of this process is the same as that of the lost attempt.
    feed = await pool.replicas[-1]._feeds.open(pool.asked[-1]["reply_to"])
    feed.send(TokenDelta(lost_id, [1, 2, 3]))
    await reading.read()
    assert reading.token_ids == {0: reading.whole()}


async def test_a_connection_that_breaks_takes_nothing_along(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client).read(at_least=10)
    pool.replicas[
        -1
    ]._feeds.close()  # the tokens that are on their way are lost, and the call returns as if all was well
    await reading.read()
    assert reading.token_ids == {0: reading.whole()}


async def test_a_stop_string_across_the_break(pool: Pool, client: RemoteEngineClient) -> None:
    undisturbed = await Reading(client, stop=["seven eight"]).read()
    assert undisturbed.finish_reasons == {0: "stop"}
    assert undisturbed.text[0].endswith("six ")
    for at_least in range(1, 9):
        reading = await Reading(client, stop=["seven eight"]).read(at_least)
        pool.engines[-1].die()
        await reading.read()
        assert reading.text == undisturbed.text
        assert reading.token_ids == undisturbed.token_ids
        assert reading.last is not None
        assert reading.last.outputs[0].stop_reason == "seven eight"


async def test_not_streaming(pool: Pool, client: RemoteEngineClient) -> None:
    reading = Reading(client, output_kind=RequestOutputKind.FINAL_ONLY)
    done = asyncio.ensure_future(reading.read())
    await running(pool)
    pool.engines[-1].die()
    assert (await done).token_ids == {0: reading.whole()}


async def test_a_request_that_ends_engines_is_stopped_after_two(pool: Pool, client: RemoteEngineClient) -> None:
    class Deadly(FakeEngine):
        async def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
            if len(request.get("delivered_token_ids") or ()) < 4:
                async for delta in super().generate({**request, "sampling": {"max_tokens": 5}}):
                    if delta.finish_reason is None:
                        yield delta
            self.die()
            raise EngineDiedError(CHAT_MODEL)

    await pool.replace_engines(Deadly)
    reading = Reading(client)
    with pytest.raises(GracefulHTTPError, match=r"2 engines of model .* ended while they worked on this") as caught:
        await reading.read()
    assert caught.value.http_status == 500
    assert reading.token_ids == {0: reading.whole(4)}
    assert sum(not engine._alive for engine in pool.engines) == 2


async def test_it_takes_no_others_along(pool: Pool, client: RemoteEngineClient) -> None:
    class Deadly(FakeEngine):
        async def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
            count = len(request.get("delivered_token_ids") or ())
            async for delta in super().generate(request):
                if request["sampling"]["seed"] == 13 and count == 4:
                    self.die()
                    raise EngineDiedError(CHAT_MODEL)
                count += 1
                yield delta

    await pool.replace_engines(Deadly)
    innocent = [Reading(client, seed=seed, temperature=1.0, max_tokens=200) for seed in range(5)]
    deadly = Reading(client, seed=13, temperature=1.0, max_tokens=200)
    outcomes = await asyncio.gather(*(reading.read() for reading in [deadly, *innocent]), return_exceptions=True)
    assert isinstance(outcomes[0], GracefulHTTPError)
    assert [reading.token_ids for reading in innocent] == [{0: reading.whole(200)} for reading in innocent]


async def test_what_an_engine_refuses_is_not_asked_for_again(pool: Pool, client: RemoteEngineClient) -> None:
    class Refusing(FakeEngine):
        async def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
            message = "not this"
            raise RequestRejectedError(message, request["model_id"])
            yield

    await pool.replace_engines(Refusing)
    with pytest.raises(Exception, match="not this"):
        await Reading(client).read()
    assert len(pool.asked) == 1


async def test_a_client_that_leaves_between_two_attempts_leaves_nothing(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client).read(at_least=3)
    pool.may_start.clear()
    pool.engines[-1].die()
    await pool.asked_times(2)
    await reading.close()
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while client._tasks:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert all(call.task.done() for call in pool.calls)


async def test_prompts_are_pooled_again(pool: Pool, client: RemoteEngineClient) -> None:
    class Dying(FakeEngine):
        async def embed(self, request: Any) -> Any:
            if len(pool.engines) > 1:
                return await super().embed(request)
            self.die()
            raise EngineDiedError(CHAT_MODEL)

    await pool.replace_engines(Dying)
    outputs = client.encode({"type": "token", "prompt_token_ids": [2, 4, 6]}, PoolingParams(task="embed"), "request")
    [output] = [output async for output in outputs]
    assert output.outputs.data.tolist() == [4.0]
    assert len(pool.engines) == 2


async def test_and_by_another_replica_where_nothing_reaches_the_one(pool: Pool, client: RemoteEngineClient) -> None:
    asked = asyncio.Event()

    class Unreachable(FakeEngine):
        async def embed(self, request: Any) -> Any:
            if len(pool.engines) == 1:
                asked.set()
                await asyncio.Future()
            return await super().embed(request)

    await pool.replace_engines(Unreachable)

    async def pooled() -> list[Any]:
        prompt = {"type": "token", "prompt_token_ids": [2, 4, 6]}
        return [output async for output in client.encode(prompt, PoolingParams(task="embed"), "request")]

    pooling = asyncio.ensure_future(pooled())
    await asked.wait()
    pool.cut_off()
    [output] = await pooling
    assert output.outputs.data.tolist() == [4.0]
