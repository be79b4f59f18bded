"""The engine replica with engines that need no model: streams, cancelling, repair."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.catalogue import Catalogue
from app.entry import Entry
from app.streams import TokenStreams
from deployments import lifecycle, residents
from deployments import replica as replica_module
from deployments.errors import (
    EngineDiedError,
    EngineUnavailableError,
    FeedError,
    ReplicaLeavingError,
    UnknownModelError,
)
from deployments.fake_engine import FakeEngine
from deployments.replica import EngineReplica
from deployments.residency import Limits
from deployments.types import ModelSpec
from tests.support.feeds import Collector, generate_request
from tests.support.handles import LocalHandle


class Setup:
    """A gateway's streams and replicas that remember the engines they made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.streams = TokenStreams()
        self.collector = Collector()
        self.engines: list[FakeEngine] = []
        self.replicas: list[EngineReplica] = []

    def replica(self, **engine: object) -> EngineReplica:
        FakeEngine.failed_starts.clear()
        return self.replica_of([ModelSpec("fake", "", engine)])

    def replica_of(self, specs: list[ModelSpec], max_wait_s: float = 10, budget_bytes: int = 10_000) -> EngineReplica:
        limits = Limits(budget_bytes, min_residency_s=0.05, max_starvation_s=1.0)
        catalogue = LocalHandle(Catalogue([Entry(spec, {}, "default", {}) for spec in specs], self.directory))
        replica = EngineReplica(catalogue, "default", self._make, limits, max_wait_s)
        self.replicas.append(replica)
        return replica

    def expect(self, *stream_ids: str) -> None:
        for stream_id in stream_ids:
            self.streams.expect(stream_id, self.collector)

    def _make(self, spec: ModelSpec) -> FakeEngine:
        self.engines.append(FakeEngine(spec))
        return self.engines[-1]


@pytest.fixture
async def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Setup]:
    monkeypatch.setattr(residents, "LOOK_PERIOD_S", 0.01)
    monkeypatch.setattr(replica_module, "CATCH_UP_S", 0.1)
    made = Setup(tmp_path)
    await made.streams.listen("127.0.0.1")
    yield made
    made.streams.close()
    for replica in made.replicas:
        await replica.close()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)


async def test_tokens_come_on_the_feed_and_the_summary_at_the_end(setup: Setup) -> None:
    replica = setup.replica()
    setup.expect("a")
    summary = await replica.generate(generate_request(setup.streams, "a", max_tokens=5))
    assert summary == {"token_count": 5, "finish_reason": "length"}
    await setup.collector.until(lambda: "a" in setup.collector.finished())
    assert setup.collector.tokens("a") == [7, 8, 9, 7, 8]


async def test_streams_that_run_together_share_frames(setup: Setup) -> None:
    replica = setup.replica(token_time_s=0.005)
    names = [f"s{index}" for index in range(32)]
    setup.expect(*names)
    await asyncio.gather(*(replica.generate(generate_request(setup.streams, name, max_tokens=20)) for name in names))
    await setup.collector.until(lambda: len(setup.collector.finished()) == 32)
    assert all(len(setup.collector.tokens(name)) == 20 for name in names)
    assert len(setup.collector.frames) < 32 * 20 / 2


async def test_cancelling_the_call_stops_the_generation(setup: Setup) -> None:
    replica = setup.replica(token_time_s=0.001)
    setup.expect("a")
    call = asyncio.ensure_future(replica.generate(generate_request(setup.streams, "a", max_tokens=100_000)))
    await setup.collector.until(lambda: setup.collector.frames)
    assert setup.engines[0].running == {"a"}
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert setup.engines[0].running == set()


async def test_a_gateway_that_goes_away_takes_its_generations_with_it(setup: Setup) -> None:
    replica = setup.replica(token_time_s=0.001)
    setup.expect("a")
    call = asyncio.ensure_future(replica.generate(generate_request(setup.streams, "a", max_tokens=100_000)))
    await setup.collector.until(lambda: setup.collector.frames)
    setup.streams.close()
    with pytest.raises(FeedError):
        await call
    assert setup.engines[0].running == set()


async def test_an_engine_that_dies_fails_its_streams_and_is_started_again(setup: Setup) -> None:
    replica = setup.replica(token_time_s=0.001)
    setup.expect("a", "b")
    call = asyncio.ensure_future(replica.generate(generate_request(setup.streams, "a", max_tokens=100_000)))
    await setup.collector.until(lambda: setup.collector.frames)
    setup.engines[0].die()
    with pytest.raises(EngineDiedError):
        await call
    await until(lambda: len(setup.engines) == 2)
    await replica.generate(generate_request(setup.streams, "b"))
    assert (await replica.describe())["fake"]["restarts"] == 1
    await replica.check_health()


async def test_requests_wait_for_an_engine_whose_first_start_fails(setup: Setup) -> None:
    replica = setup.replica(fail_starts=1)
    setup.expect("a")
    summary = await replica.generate(generate_request(setup.streams, "a"))
    assert summary["token_count"] == 4
    assert (await replica.describe())["fake"]["state"] == "awake"


async def test_an_engine_that_cannot_start_fails_with_its_reason_and_may_be_tried_again(setup: Setup) -> None:
    replica = setup.replica(fail_starts=lifecycle.MAX_FAILURES)
    with pytest.raises(EngineUnavailableError, match="told to fail"):
        await replica.generate(generate_request(setup.streams, "a"))
    assert len(setup.engines) == lifecycle.MAX_FAILURES
    described = (await replica.describe())["fake"]
    assert (described["state"], described["reason"], described["is_up"]) == ("failed", "told to fail", False)
    with pytest.raises(EngineUnavailableError, match="told to fail"):
        await replica.supported_tasks("fake")
    await replica.check_health()  # other models are served
    await replica.wake({"model_id": "fake"})
    assert (await replica.describe())["fake"]["state"] == "awake"


async def test_a_failed_model_is_tried_again_after_a_while(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = setup.replica(fail_starts=lifecycle.MAX_FAILURES)
    with pytest.raises(EngineUnavailableError):
        await replica.supported_tasks("fake")
    monkeypatch.setattr(residents, "RETRY_FAILED_AFTER_S", 0.0)
    assert await replica.supported_tasks("fake")


async def test_an_engine_that_keeps_dying_is_given_up(setup: Setup) -> None:
    replica = setup.replica()
    for life in range(lifecycle.MAX_FAILURES):
        await until(lambda life=life: len(setup.engines) == life + 1)
        await replica.wake({"model_id": "fake"})
        setup.engines[-1].die()
    await until(lambda: replica._residents.describe()["fake"]["state"] == "failed")
    with pytest.raises(EngineUnavailableError, match="its engine died"):
        await replica.generate(generate_request(setup.streams, "a"))


async def test_one_that_answers_before_it_dies_is_not(setup: Setup) -> None:
    replica = setup.replica()
    for life in range(lifecycle.MAX_FAILURES + 1):
        await until(lambda life=life: len(setup.engines) == life + 1)
        await replica.generate(generate_request(setup.streams, f"a{life}"))
        setup.engines[-1].die()
    await until(lambda: replica._residents.describe()["fake"]["restarts"] == lifecycle.MAX_FAILURES + 1)
    assert await replica.generate(generate_request(setup.streams, "b"))


async def test_a_stopped_replica_tells_those_who_wait(setup: Setup) -> None:
    replica = setup.replica()
    await replica.supported_tasks("fake")
    await replica.close()
    # Which has it asked of another replica.
    with pytest.raises(ReplicaLeavingError, match="stopping"):
        await replica.generate(generate_request(setup.streams, "a"))


async def test_a_model_it_does_not_host(setup: Setup) -> None:
    with pytest.raises(UnknownModelError):
        await setup.replica().generate(generate_request(setup.streams, "a", model_id="other"))


async def test_a_request_made_for_another_version_of_the_model_does_not_reach_it(setup: Setup) -> None:
    replica = setup.replica()
    await replica.supported_tasks("fake")
    with pytest.raises(EngineUnavailableError, match="being changed"):
        await replica.generate(generate_request(setup.streams, "a") | {"revision": "another"})
