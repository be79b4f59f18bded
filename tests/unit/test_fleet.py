"""A gateway's choice among replicas, on the news that they send it: real sockets, engines that need no model."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.catalogue import Catalogue
from app.engine_states import UNHEARD_OF
from app.entry import Entry
from app.fleet import Fleet, Fleets
from app.migration import ResumeCost
from app.prefixes import BLOCK_TOKENS, PrefixTable, blocks_of
from app.streams import TokenStreams
from deployments import news
from deployments.adapter_rows import adapter_key
from deployments.fake_engine import FakeEngine
from deployments.fitted_line import FittedLine
from deployments.placements import Placements
from deployments.replica import EngineReplica
from deployments.residency import Limits
from deployments.types import AdapterRef, EngineDescription, GenerateRequest, ModelSpec, Place
from tests.support.feeds import Collector, generate_request
from tests.support.handles import LocalHandle

COST = ResumeCost(FittedLine(0.05, 0.01))


class Setup:
    """One gateway, and two replicas behind what stands for a Serve handle."""

    deployment_id = "pool"

    def __init__(self, directory: Path) -> None:
        self.placements = Placements()
        self.fleets = Fleets({"pool": self}, self.placements)
        self.streams = TokenStreams(self.fleets)
        self.replicas: dict[str, EngineReplica] = {}
        engine = {"token_time_s": 0.001, "wake_time_s": 0.05}
        spec = ModelSpec("fake", "", engine, lora_enabled=True, awake_bytes=100)
        limits = Limits(10_000, min_residency_s=0.0, max_starvation_s=1.0)
        for name in ("one", "two"):
            catalogue = LocalHandle(Catalogue([Entry(spec, {}, "pool", {})], directory))
            self.replicas[name] = EngineReplica(catalogue, "pool", FakeEngine, limits, 5.0, name)

    @property
    def tell_news(self) -> Any:
        return type("Method", (), {"remote": self._tell_news})

    async def _tell_news(self, request: Any) -> None:
        await self.replicas[request["place"]["replica_id"]].tell_news(request)

    def choose(self, ask: GenerateRequest) -> Place | None:
        return self.fleets.of("pool").place_for(ask, COST)


@pytest.fixture
async def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr(news, "GATHER_S", 0.001)
    FakeEngine.failed_starts.clear()
    made = Setup(tmp_path)
    await made.streams.listen("127.0.0.1")
    for replica in made.replicas.values():
        await replica.wake({"model_id": "fake"})
    made.placements.replicas("pool", list(made.replicas))
    made.fleets.run(made.streams.reply_to)
    yield made
    made.fleets.close()
    made.streams.close()
    for replica in made.replicas.values():
        await replica.close()


async def until_chosen(setup: Setup, name: str, times: int = 20) -> None:
    """Wait until the choice is always this one."""
    async with asyncio.timeout(10):
        while True:
            asks = [generate_request(setup.streams, f"s{index}") for index in range(times)]
            if all(setup.choose(ask) == {"replica_id": name} for ask in asks):
                return
            await asyncio.sleep(0.01)


async def until_chosen_any(setup: Setup) -> None:
    async with asyncio.timeout(10):
        while setup.choose(generate_request(setup.streams, "any")) is None:  # noqa: ASYNC110 - until the first news
            await asyncio.sleep(0.01)


async def test_the_awake_replica_is_chosen(setup: Setup) -> None:
    await setup.replicas["one"].sleep({"model_id": "fake"})
    await until_chosen(setup, "two", times=1)
    await setup.replicas["one"].wake({"model_id": "fake"})
    await setup.replicas["two"].sleep({"model_id": "fake"})
    await until_chosen(setup, "one", times=1)


async def test_requests_that_nobody_has_told_of_yet_count(setup: Setup) -> None:
    await until_chosen_any(setup)
    choices = [setup.choose(generate_request(setup.streams, f"s{index}")) for index in range(40)]
    assert all(choices.count({"replica_id": name}) >= 10 for name in setup.replicas)


async def test_the_busy_replica_is_left_alone(setup: Setup) -> None:
    collector = Collector()
    setup.streams.expect("long", collector)
    ask = generate_request(setup.streams, "long", max_tokens=100_000)
    call = asyncio.ensure_future(setup.replicas["one"].generate(ask))
    await collector.until(lambda: collector.frames)
    await until_chosen(setup, "two", times=1)
    call.cancel()


async def test_requests_for_an_adapter_go_where_it_is(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "LOOK_S", 0.001)
    adapters: dict[str, AdapterRef] = {
        name: {"id": name, "path": "", "digest": digest * 64} for name, digest in (("one", "1"), ("two", "2"))
    }
    await until_chosen_any(setup)
    collector = Collector()
    for name, adapter in adapters.items():
        setup.streams.expect(name, collector)
        ask = generate_request(setup.streams, name)
        await setup.replicas[name].generate(ask | {"adapter": adapter})  # type: ignore[typeddict-item]
    view = setup.fleets.of("pool")._view
    for name, adapter in adapters.items():
        # Without sending: what was sent would be taken to be there.
        async with asyncio.timeout(10):
            while view.best("fake", time.monotonic(), {}, adapter_key(adapter["digest"])) != [name]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ask = generate_request(setup.streams, "next")
        assert setup.choose(ask | {"adapter": adapter}) == {"replica_id": name}  # type: ignore[typeddict-item]


async def test_a_dead_engine_is_avoided_before_its_replica_says_so(setup: Setup) -> None:
    await until_chosen_any(setup)
    setup.fleets.of("pool").lose_engine("one", "fake")
    await until_chosen(setup, "two", times=1)
    # Which its replica hasn't noticed either, so the next change there is news.
    await setup.replicas["two"].sleep({"model_id": "fake"})
    await setup.replicas["one"].sleep({"model_id": "fake"})
    await setup.replicas["one"].wake({"model_id": "fake"})
    await until_chosen(setup, "one", times=1)


async def test_how_soon_another_replica_would_serve(setup: Setup) -> None:
    await until_chosen_any(setup)
    fleet = setup.fleets.of("pool")
    async with asyncio.timeout(10):
        while not (awake_s := fleet.elsewhere_s("fake", "one")):  # noqa: ASYNC110 - until two has told
            await asyncio.sleep(0.01)
    await setup.replicas["two"].sleep({"model_id": "fake"})
    async with asyncio.timeout(10):
        while fleet.elsewhere_s("fake", "one") == awake_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (fleet.elsewhere_s("fake", "one") or 0) > awake_s
    assert fleet.elsewhere_s("another", "one") is None


async def test_a_replica_that_has_gone_is_not_chosen(setup: Setup) -> None:
    await until_chosen_any(setup)
    setup.placements.replicas("pool", ["two"])
    await setup.replicas["one"].close()
    async with asyncio.timeout(10):
        while setup.choose(generate_request(setup.streams, "any")) is not None:  # noqa: ASYNC110 - until it is noticed
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("may_be_empty", [True, False])
async def test_looking_at_a_pool_that_was_scaled_to_zero_starts_nothing(*, may_be_empty: bool) -> None:
    """Serve starts a replica for any call."""
    pool = Asked()
    placements = Placements()
    fleet = Fleet(pool, placements, may_be_empty=may_be_empty)
    await fleet.describe()
    placements.replicas("pool", ["one"])
    assert (await fleet.describe())["m"]["state"] == "awake"
    placements.replicas("pool", [])
    described = (await fleet.describe())["m"]
    assert pool.asked == (2 if may_be_empty else 3), "but for the first time, when nobody knows anything"
    assert described["is_up"]
    assert described["state"] == ("cold" if may_be_empty else "awake")


class Asked:
    """A pool of one model that counts how often it is asked."""

    deployment_id = "pool"

    def __init__(self) -> None:
        self.asked = 0

    @property
    def describe(self) -> Any:
        return type("Method", (), {"remote": self._describe})

    async def _describe(self, _: Any) -> dict[str, EngineDescription]:
        self.asked += 1
        return {"m": UNHEARD_OF | {"state": "awake", "is_up": True}}  # type: ignore[dict-item]


def test_a_prefix_is_remembered_by_whole_blocks_and_group() -> None:
    table = PrefixTable()
    prompt = list(range(BLOCK_TOKENS * 2 + 5))
    table.sent(blocks_of("m", prompt), "one")
    assert table.computed(blocks_of("m", prompt)) == {"one": 2 * BLOCK_TOKENS}
    assert table.computed(blocks_of("m", [*prompt[:BLOCK_TOKENS], 7, 7])) == {"one": BLOCK_TOKENS}
    assert table.computed(blocks_of("m", [7, *prompt])) == {}
    assert table.computed(blocks_of("other", prompt)) == {}
    table.sent(blocks_of("m", prompt[:BLOCK_TOKENS]), "two")
    assert table.computed(blocks_of("m", prompt)) == {"two": BLOCK_TOKENS, "one": 2 * BLOCK_TOKENS}


def test_of_prefixes_the_oldest_are_forgotten() -> None:
    table = PrefixTable(max_blocks=2)
    for first in range(3):
        table.sent(blocks_of("m", [first] * BLOCK_TOKENS), "one")
    assert table.computed(blocks_of("m", [0] * BLOCK_TOKENS)) == {}
    assert table.computed(blocks_of("m", [2] * BLOCK_TOKENS)) == {"one": BLOCK_TOKENS}
