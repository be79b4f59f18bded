"""Requests and the engines they are for: held, woken once, batched, displaced, turned away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from deployments import lifecycle, residents
from deployments.errors import EngineUnavailableError, UnknownModelError
from deployments.fake_engine import FakeEngine
from deployments.lifecycle import EngineLifecycle
from deployments.residency import Limits
from deployments.resident import Resident
from deployments.residents import Residents
from tests.support.gated_engines import ONE_AWAKE, Setup, spec

LONG_S = 1e9


@pytest.fixture
async def setup(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr(residents, "LOOK_PERIOD_S", 0.01)
    FakeEngine.failed_starts.clear()
    made = Setup()
    yield made
    for each in made.made:
        await each.close()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)


def state(made: Residents, model_id: str) -> str:
    return made.describe()[model_id]["state"]


async def asleep(made: Residents, model_id: str) -> None:
    await made.sleep(model_id)
    assert state(made, model_id) == "asleep"


async def use(made: Residents, model_id: str) -> None:
    async with made.use(model_id) as engine:
        engine.check()


async def test_however_many_wait_it_wakes_once_and_serves_all(setup: Setup) -> None:
    made = await setup(spec("a"))
    await asleep(made, "a")
    engine = setup.engines["a"][0]
    engine.gate.clear()
    calls = [asyncio.ensure_future(use(made, "a")) for _ in range(50)]
    await until(lambda: made.describe()["a"]["waiting"] == 50)
    engine.gate.set()
    await asyncio.gather(*calls)
    assert engine.wakes == 1
    described = made.describe()["a"]
    assert (described["requests"], described["waiting"], described["wakes"]) == (0, 0, 1)


async def test_who_is_given_the_engine_as_the_time_is_over_has_it() -> None:
    """Or it would be counted as running for good."""
    engine = FakeEngine(spec("a"))
    resident = Resident(spec("a"), EngineLifecycle("a", lambda: engine, lambda: None, lambda _: ""), 0.0)
    ticket = resident.queue()
    call = asyncio.ensure_future(resident.wait_for(ticket, 0.0))
    # It waits now, and the end of its time is the next thing that happens.
    await asyncio.sleep(0)
    resident.let_in(engine)
    assert await call is engine
    assert resident.running == 1
    assert not resident.waiting


async def test_who_leaves_while_it_wakes_leaves_nothing_behind(setup: Setup) -> None:
    made = await setup(spec("a"))
    await asleep(made, "a")
    engine = setup.engines["a"][0]
    engine.gate.clear()
    call = asyncio.ensure_future(use(made, "a"))
    await until(lambda: state(made, "a") == "waking")
    call.cancel()
    await asyncio.wait([call])
    assert made.describe()["a"]["waiting"] == 0
    engine.gate.set()
    await until(lambda: state(made, "a") == "awake")
    assert made.describe()["a"]["requests"] == 0
    await asleep(made, "a")


async def test_a_request_is_held_only_so_long(setup: Setup) -> None:
    made = await setup(spec("a"), max_wait_s=0.05)
    await asleep(made, "a")
    setup.engines["a"][0].gate.clear()
    with pytest.raises(EngineUnavailableError, match=r"not awake within 0.05 s \(waking\)"):
        await use(made, "a")
    setup.engines["a"][0].gate.set()


async def test_idle_engines_sleep_after_a_while_and_keep_alive_puts_it_off(setup: Setup) -> None:
    made = await setup(spec("a", keep_awake_s=0.05), spec("b", keep_awake_s=0.05))
    async with made.use("b", keep_awake_s=LONG_S):
        pass
    await until(lambda: state(made, "a") == "asleep")
    await asyncio.sleep(0.1)  # twice what it would stay awake for without being told
    assert state(made, "b") == "awake"


async def test_on_a_full_device_the_idle_one_makes_room(setup: Setup) -> None:
    made = await setup(spec("a"), spec("b"), budget_bytes=ONE_AWAKE)
    for model_id in ("a", "b", "a"):
        await use(made, model_id)
        other = {"a": "b", "b": "a"}[model_id]
        assert (state(made, model_id), state(made, other)) == ("awake", "asleep")


async def test_a_busy_one_drains_when_others_are_due_and_loses_no_request(setup: Setup) -> None:
    made = await setup(spec("a"), spec("b"), budget_bytes=ONE_AWAKE)
    async with AsyncExitStack() as in_hand:
        await in_hand.enter_async_context(made.use("a"))
        wakes = setup.engines["a"][0].wakes
        waiting = asyncio.ensure_future(use(made, "b"))
        await until(lambda: "a" in made._draining)
        late = asyncio.ensure_future(use(made, "a"))
        await until(lambda: made.describe()["a"]["waiting"] == 1)
        assert state(made, "a") == "awake", "it has a request in hand"
    await asyncio.gather(waiting, late)
    assert setup.engines["a"][0].wakes == wakes + 1, "the late one had to wait for its next turn"


async def test_a_model_that_never_fits_is_turned_away_with_the_reason(setup: Setup) -> None:
    made = await setup(spec("a"), budget_bytes=ONE_AWAKE)
    large = await setup(budget_bytes=ONE_AWAKE)
    assert large.describe() == {}
    made = Residents([spec("large", awake_bytes=10_000)], setup._make, Limits(ONE_AWAKE, 0, 1), 10)
    setup.made.append(made)
    made.run()
    with pytest.raises(EngineUnavailableError, match="10000 of 130 bytes"):
        await use(made, "large")


async def test_on_a_gpu_a_start_needs_what_vllm_wants_to_be_free() -> None:
    """Whatever the engine took once it was there; a wake needs no more than that."""
    engine = FakeEngine(spec("a"))
    life = EngineLifecycle("a", lambda: engine, lambda: None, lambda _: "")
    resident = Resident(replace(spec("a"), device="gpu", awake_bytes=10 * ONE_AWAKE), life, 0.0)

    def needed_bytes() -> int:
        return resident.view(None, 0.0, draining=False).awake_bytes

    assert needed_bytes() == 10 * ONE_AWAKE
    await life.start()
    taken_bytes = await engine.memory_bytes()
    assert 0 < taken_bytes < 10 * ONE_AWAKE
    assert needed_bytes() == taken_bytes
    await life.sleep()
    assert needed_bytes() == taken_bytes
    await life.stop()
    assert needed_bytes() == 10 * ONE_AWAKE


async def test_one_that_does_not_wake_is_started_again_and_the_request_is_served(setup: Setup) -> None:
    made = await setup(spec("a"))
    await asleep(made, "a")
    setup.engines["a"][0].broken = True
    await use(made, "a")
    assert len(setup.engines["a"]) == 2
    assert made.describe()["a"]["restarts"] == 1


async def test_one_that_died_asleep_is_started_again(setup: Setup) -> None:
    made = await setup(spec("a"))
    await asleep(made, "a")
    setup.engines["a"][0].die()
    await until(lambda: len(setup.engines["a"]) == 2)
    await use(made, "a")


async def test_the_more_wait_and_the_more_are_at_work_the_later_come_first_tokens(setup: Setup) -> None:
    made = await setup(spec("a"), spec("b"))
    for others in (0, 1, 2, 3) * 5:
        made.first_token("a", 0.1 + 0.02 * others, others)
    await asleep(made, "a")
    engine = setup.engines["a"][0]
    engine.gate.clear()
    calls = [asyncio.ensure_future(use(made, "a")) for _ in range(6)]
    await until(lambda: made.describe()["a"]["waiting"] == 6)
    a, b = made.views()
    assert a.first_token_s == pytest.approx(0.1 + 0.02 * 5, rel=0.02)
    assert b.first_token_s == 0, "nothing was measured of it"
    async with made.use("b"):
        a, _ = made.views()
        assert a.first_token_s == pytest.approx(2 * (0.1 + 0.02 * 5), rel=0.02)
    engine.gate.set()
    await asyncio.gather(*calls)


async def test_a_stopped_one_stays_cold_until_it_is_asked_for(setup: Setup) -> None:
    made = await setup(spec("a"))
    await made.stop("a")
    assert state(made, "a") == "cold"
    await use(made, "a")
    assert len(setup.engines["a"]) == 2


async def test_what_a_wake_would_take_follows_from_where_the_snapshot_is(setup: Setup) -> None:
    made = await setup(spec("a"))
    engine = setup.engines["a"][0]
    for engine.found_in, takes_s in (("dram", 0.01), ("disk", 0.5)):
        await made.sleep("a")
        engine._wake_time_s = takes_s
        await use(made, "a")
    (near,) = made.views()
    setup.tier = "disk"
    (far,) = made.views()
    assert 0.01 <= near.wake_s < 0.5 <= far.wake_s
    # Also once there is no engine to ask.
    await made.stop("a")
    assert made.views()[0].wake_s == far.wake_s


async def test_pinned_ones_stay_awake(setup: Setup) -> None:
    made = await setup(spec("a", pin="gpu", keep_awake_s=0.0), spec("b", keep_awake_s=0.0))
    await until(lambda: state(made, "b") == "asleep")
    assert state(made, "a") == "awake"


async def test_many_models_on_room_for_one_all_get_their_turn(setup: Setup) -> None:
    names = ["a", "b", "c"]
    made = await setup(*(spec(name) for name in names), budget_bytes=ONE_AWAKE)
    async with asyncio.timeout(20):
        await asyncio.gather(*(use(made, names[index % 3]) for index in range(300)))
    assert sum(engines[0].wakes for engines in setup.engines.values()) < 30, "requests for a model go together"
    assert lifecycle.MAX_FAILURES > sum(made.describe()[name]["restarts"] for name in names) == 0


async def test_a_model_that_is_added_and_removed(setup: Setup) -> None:
    made = await setup(spec("a"))
    made.host([spec("a"), spec("b")])
    assert await made.supported_tasks("b")
    made.host([spec("a")])
    with pytest.raises(UnknownModelError):
        await made.wake("b")
    await until(lambda: set(made.describe()) == {"a"})
    assert setup.engines["b"][0].is_stopped
    assert not setup.engines["a"][0].is_stopped


async def test_a_model_that_goes_ends_what_it_has_in_hand_and_turns_away_who_waits(setup: Setup) -> None:
    made = await setup(spec("a"))
    async with made.use("a"):
        made.host([])
        await asyncio.sleep(0.05)
        assert not setup.engines["a"][0].is_stopped
    await until(lambda: setup.engines["a"][0].is_stopped)
    await until(lambda: not made.describe())


async def test_who_waits_for_a_model_that_changes_gets_the_new_engine(setup: Setup) -> None:
    made = await setup(spec("a"))
    changed = spec("a", engine={"token_time_s": 0.001})
    async with AsyncExitStack() as in_hand:
        old = await in_hand.enter_async_context(made.use("a"))
        made.host([changed])
        assert made.hosts("a", changed.revision)
        assert not made.hosts("a", spec("a").revision)
        waiting = asyncio.ensure_future(_used(made, "a"))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "the old engine still works"
    new = await waiting
    assert new is not old
    assert setup.engines["a"] == [old, new]
    assert setup.engines["a"][0].is_stopped


async def test_what_concerns_no_engine_changes_none(setup: Setup) -> None:
    made = await setup(spec("a"))
    made.host([spec("a", pin="gpu", keep_awake_s=3.0, ttft_slo_s=9.0)])
    await made.wake("a")
    assert len(setup.engines["a"]) == 1


async def _used(made: Residents, model_id: str) -> object:
    async with made.use(model_id) as engine:
        return engine


async def test_a_request_may_keep_its_model_awake_for_longer_or_less(setup: Setup) -> None:
    made = await setup(spec("a", keep_awake_s=LONG_S))
    async with made.use("a", keep_awake_s=0.0):
        pass
    await until(lambda: made.describe()["a"]["state"] == "asleep")
    async with made.use("a", keep_awake_s=LONG_S):
        pass
    async with made.use("a", keep_awake_s=0.0):
        pass
    await asyncio.sleep(0.05)
    assert made.describe()["a"]["state"] == "awake", "who asked for longer is not overruled"
