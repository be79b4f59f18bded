"""Streams move from one replica to another while they run: when a replica leaves, and when they are told to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.engine_client import RemoteEngineClient
from deployments import residents
from deployments.errors import ResumeUnsupportedError
from deployments.fake_engine import ASLEEP_BYTES, AWAKE_BYTES, FakeEngine
from deployments.types import GenerateRequest, ModelSpec
from deployments.wire import TokenDelta
from tests.support.fake_pool import Pool, Reading, client_of
from tests.support.service import CHAT_MODEL

LONG = 400


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)


async def moves_told(pool: Pool) -> list[tuple[int, int]]:
    told = [(await replica.describe())[CHAT_MODEL] for replica in pool.replicas]
    return [(engine["arriving"], engine["arrived"]) for engine in told]


async def test_streams_of_a_leaving_replica_move_and_nobody_notices(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client, max_tokens=LONG).read(at_least=30)
    pool.begin()
    pool.leave(0)
    await until(lambda: len(pool.engines) == 2 and not pool.engines[0].running)
    await reading.read()
    assert reading.token_ids == {0: reading.whole(LONG)}
    assert (client._pool.moves, client._pool.resumes) == (1, 0)
    assert pool.asked[-1]["place"] == {"replica_id": "1", "avoid_id": "0"}


async def test_the_source_goes_on_while_the_target_prepares(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client, max_tokens=LONG).read(at_least=30)
    pool.may_start.clear()  # the target's engine is not there yet
    pool.begin()
    pool.leave(0)
    before = len(reading.token_ids[0])
    await reading.read(at_least=before + 50)
    assert pool.engines[0].running
    assert await moves_told(pool) == [(0, 0), (0, 0)]
    pool.may_start.set()
    await until(lambda: not pool.engines[0].running)
    await reading.read()
    assert reading.token_ids == {0: reading.whole(LONG)}
    assert await moves_told(pool) == [(0, 0), (0, 1)]


async def test_what_is_about_to_come_is_told(pool: Pool, client: RemoteEngineClient) -> None:
    computing, may_end = asyncio.Event(), asyncio.Event()

    class Preparing(FakeEngine):
        async def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
            if request.get("prepares"):
                computing.set()
                await may_end.wait()
            async for delta in super().generate(request):
                yield delta

    reading = await Reading(client, n=2, temperature=1.0, max_tokens=LONG).read(at_least=30)
    pool.kind = Preparing
    pool.begin()
    pool.leave(0)
    await computing.wait()
    await until(lambda: len(pool.engines) == 2 and pool.asked[-1].get("prepares") and pool.asked[-2].get("prepares"))
    assert await moves_told(pool) == [(0, 0), (2, 0)]
    may_end.set()
    await reading.read()
    assert reading.token_ids == dict.fromkeys(range(2), reading.whole(LONG))
    assert await moves_told(pool) == [(0, 0), (0, 2)]


async def test_they_wait_for_a_place_to_go_to(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client, max_tokens=LONG).read(at_least=30)
    pool.leave(0)
    await reading.read(at_least=60)
    assert len(pool.asked) == 1, "there is nobody to ask"
    pool.begin()
    await reading.read()
    assert reading.token_ids == {0: reading.whole(LONG)}
    assert client._pool.moves == 1


async def test_a_replica_can_be_told_to_send_its_streams_away(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client, n=3, temperature=1.0, max_tokens=LONG).read(at_least=30)
    pool.begin()
    assert pool.placements.busiest(CHAT_MODEL) == "0"
    assert await pool.replicas[0].move({"model_id": CHAT_MODEL}) == 3
    await until(lambda: pool.placements.busiest(CHAT_MODEL) == "1" and not pool.engines[0].running)
    await reading.read()
    assert reading.token_ids == dict.fromkeys(range(3), reading.whole(LONG))
    assert client._pool.moves == 3


async def test_a_source_that_dies_under_the_move_is_resumed(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client, max_tokens=LONG).read(at_least=30)
    pool.may_start.clear()
    pool.begin()
    pool.leave(0)
    await until(lambda: len(pool.asked) == 2)
    pool.engines[0].die()
    pool.may_start.set()
    await reading.read()
    assert reading.token_ids == {0: reading.whole(LONG)}
    assert (client._pool.moves, client._pool.resumes) == (0, 1)


async def test_a_target_that_dies_under_the_move_is_replaced(
    pool: Pool, client: RemoteEngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.carrier.MOVE_AGAIN_S", 0.01)

    class Dying(FakeEngine):
        async def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
            if len(pool.engines) == 2:
                self.die()
            async for delta in super().generate(request):
                yield delta

    reading = await Reading(client, max_tokens=LONG).read(at_least=30)
    pool.kind = Dying
    pool.begin()
    pool.leave(0)
    await reading.read()
    assert reading.token_ids == {0: reading.whole(LONG)}
    assert len(pool.engines) == 3
    assert client._pool.resumes == 0, "the source was there"


async def test_what_can_not_move_stays_to_its_end(pool: Pool, client: RemoteEngineClient) -> None:
    class Unable(FakeEngine):
        async def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
            if request.get("delivered_token_ids"):
                raise ResumeUnsupportedError(CHAT_MODEL, "not this one")
            async for delta in super().generate(request):
                yield delta

    await pool.replace_engines(Unable)
    reading = await Reading(client, max_tokens=LONG).read(at_least=30)
    pool.begin()
    pool.leave(1)
    await reading.read()
    assert reading.token_ids == {0: reading.whole(LONG)}
    assert client._pool.moves == 0


@pytest.mark.parametrize("elsewhere_s", [0.0, 1000.0, None])
async def test_streams_make_room_for_another_model_if_that_is_quicker_than_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere_s: float | None
) -> None:
    monkeypatch.setattr(residents, "LOOK_PERIOD_S", 0.01)
    other = ModelSpec("other", "", awake_bytes=AWAKE_BYTES, ttft_slo_s=0.01)
    pool = Pool(tmp_path, (other,), AWAKE_BYTES + ASLEEP_BYTES)
    async with client_of(pool) as client:
        client._pool.elsewhere_s = lambda _model_id, _replica_id: elsewhere_s
        reading = await Reading(client, max_tokens=LONG).read(at_least=30)
        pool.begin()
        async with pool.replicas[0]._residents.use("other"):
            assert len(client._carriers) == (elsewhere_s == 0.0), "it runs elsewhere, or has ended"
        await reading.read()
        assert reading.token_ids == {0: reading.whole(LONG)}
        assert client._pool.moves == (elsewhere_s == 0.0)
    await pool.close()


async def test_a_client_that_leaves_under_the_move_leaves_nothing(pool: Pool, client: RemoteEngineClient) -> None:
    reading = await Reading(client, max_tokens=LONG).read(at_least=30)
    pool.may_start.clear()
    pool.begin()
    pool.leave(0)
    await until(lambda: len(pool.asked) == 2)
    await reading.close()
    await until(lambda: all(call.task.done() for call in pool.calls))
    assert not any(engine.running for engine in pool.engines)
