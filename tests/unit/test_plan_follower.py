"""What a replica does with a plan: wakes ahead, keeps awake, obeys requests first, and does without."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from deployments import plan_follower
from deployments import residents as residents_module
from deployments.engine_view import Expectation
from deployments.fake_engine import FakeEngine
from deployments.plan_follower import PlanFollower, read_order
from deployments.residents import Residents
from tests.support.gated_engines import ONE_AWAKE, Setup, spec


@pytest.fixture
async def setup(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr(residents_module, "LOOK_PERIOD_S", 0.01)
    FakeEngine.failed_starts.clear()
    made = Setup()
    yield made
    for each in made.made:
        await each.close()


def expected(in_s: float = 0.0, for_s: float = 100.0, per_s: float = 0.0) -> Expectation:
    now_s = time.monotonic()
    return Expectation(per_s, now_s + in_s, now_s + in_s + for_s, "told so")


async def state(residents: Residents, model_id: str, wanted: str) -> None:
    async with asyncio.timeout(10):
        while residents.describe()[model_id]["state"] != wanted:  # noqa: ASYNC110 - as a client sees it
            await asyncio.sleep(0.001)


async def asleep(setup: Setup, **fields: Any) -> Residents:
    residents = await setup(spec("m", keep_awake_s=0.01, **fields))
    await state(residents, "m", "asleep")
    return residents


async def test_it_wakes_when_it_is_expected_and_sleeps_when_nobody_came(setup: Setup) -> None:
    residents = await asleep(setup)
    residents.expect({"m": expected(in_s=0.2, for_s=0.2), "unknown": expected()})
    begin_s = time.monotonic()
    await state(residents, "m", "awake")
    assert time.monotonic() - begin_s >= 0.15
    await state(residents, "m", "asleep")
    counts = residents.prewarms.counts()
    assert (counts["used"], counts["late"], counts["wasted"]) == (0, 0, 1)
    assert counts["wasted_s"] > 0.05


async def test_a_request_finds_it_awake(setup: Setup) -> None:
    residents = await asleep(setup)
    residents.expect({"m": expected()})
    await state(residents, "m", "awake")
    async with residents.use("m"):
        pass
    assert residents.prewarms.counts()["used"] == 1
    assert setup.engines["m"][-1].wakes == 1


async def test_a_request_finds_it_on_its_way(setup: Setup) -> None:
    residents = await asleep(setup)
    engine = setup.engines["m"][-1]
    engine.gate.clear()
    residents.expect({"m": expected()})
    await state(residents, "m", "waking")
    using = asyncio.ensure_future(residents.use("m").__aenter__())
    await asyncio.sleep(0)
    engine.gate.set()
    await using
    assert residents.prewarms.counts()["late"] == 1
    assert engine.wakes == 1


async def test_a_wake_that_is_asked_for_is_no_prewarm(setup: Setup) -> None:
    residents = await asleep(setup)
    async with residents.use("m"):
        pass
    await state(residents, "m", "asleep")
    assert sum(residents.prewarms.counts().values()) == 0


async def test_what_is_expected_no_more_is_cancelled(setup: Setup) -> None:
    residents = await asleep(setup)
    residents.expect({"m": expected()})
    await state(residents, "m", "awake")
    residents.expect({})
    await state(residents, "m", "asleep")
    assert residents.prewarms.counts()["wasted"] == 1


async def test_who_says_how_long_it_stays_awake_is_obeyed(setup: Setup) -> None:
    residents = await asleep(setup)
    residents.expect({"m": expected(per_s=100.0)})
    await state(residents, "m", "awake")
    async with residents.use("m", keep_awake_s=0.01):
        pass
    await state(residents, "m", "asleep")


async def test_who_puts_it_to_sleep_is_obeyed(setup: Setup) -> None:
    residents = await setup(spec("m"))
    residents.expect({"m": expected(per_s=100.0)})
    await residents.sleep("m")
    await asyncio.sleep(0.05)
    assert residents.describe()["m"]["state"] == "asleep"


async def test_nobody_makes_room_for_what_is_only_expected(setup: Setup) -> None:
    residents = await setup(spec("m"), spec("n"), budget_bytes=ONE_AWAKE)
    await state(residents, "m", "asleep")
    residents.expect({"m": expected()})
    await asyncio.sleep(0.1)
    assert residents.describe()["m"]["state"] == "asleep"
    assert residents.describe()["n"]["state"] == "awake"


async def test_what_it_tells(setup: Setup) -> None:
    residents = await asleep(setup)
    residents.served("m", 2.0)
    residents.served("m", 4.0)
    follower = PlanFollower("forecaster:app", "pool", "r", residents)
    told = follower.report()["engines"]["m"]
    assert (told["state"], told["served"], told["served_s"]) == ("asleep", 2, 3.0)
    assert follower.report()["engines"]["m"]["served"] == 0, "once"


async def test_it_tells_what_has_changed(setup: Setup) -> None:
    residents = await asleep(setup)
    follower = PlanFollower("forecaster:app", "pool", "r", residents)
    told = follower.report()
    assert (set(told["engines"]), told["is_change"], told["gone"]) == ({"m"}, False, [])
    told = follower.report()
    assert (told["engines"], told["is_change"]) == ({}, True)
    for _ in range(2):
        residents.served("m", 2.0)
        assert follower.report()["engines"]["m"]["served"] == 1, "also when it is as much again"
    residents.host([])
    async with asyncio.timeout(10):
        while "m" in residents.describe():  # noqa: ASYNC110 - as a client sees it
            await asyncio.sleep(0.001)
    told = follower.report()
    assert (told["engines"], told["is_change"], told["gone"]) == ({}, True, ["m"])


async def test_after_an_answer_that_did_not_come_it_tells_everything(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_follower, "PERIOD_S", 0.001)
    residents = await asleep(setup)
    follower = PlanFollower("forecaster:app", "pool", "r", residents)
    told: list[tuple[bool, bool]] = []

    async def ask(report: dict[str, Any]) -> Any:
        told.append((report["is_change"], "m" in report["engines"]))
        if len(told) == 3:
            raise ValueError("changes of replica 'r', which is not known")
        if len(told) == 5:
            return "nonsense"
        return {}

    monkeypatch.setattr(follower, "_ask", ask)
    follower.run()
    async with asyncio.timeout(10):
        while len(told) < 7:  # noqa: ASYNC110 - as it goes on
            await asyncio.sleep(0.001)
    await follower.close()
    whole, change = (False, True), (True, False)
    assert told[:7] == [whole, change, change, whole, change, whole, change]


@pytest.mark.parametrize(
    "nonsense",
    [
        "soon", {}, {"m": None}, {"m": {}}, {"m": {"expected_per_s": math.nan, "in_s": 0, "for_s": 0, "reason": ""}},
        {"m": {"expected_per_s": 0, "in_s": -1, "for_s": 0, "reason": ""}},
        {"m": {"expected_per_s": 0, "in_s": 0, "for_s": math.inf, "reason": ""}},
        {"m": {"expected_per_s": 0, "in_s": 0, "for_s": 0, "reason": "", "adapters": {"a": math.nan}}},
        {"m": {"expected_per_s": 0, "in_s": 0, "for_s": 0, "reason": "", "adapters": "all"}},
    ],
)  # fmt: skip
async def test_nonsense_changes_nothing(setup: Setup, nonsense: Any) -> None:
    residents = await asleep(setup)
    follower = PlanFollower("forecaster:app", "pool", "r", residents)
    residents.expect({"m": expected(in_s=50.0)})
    before = residents._expected
    if nonsense == {}:
        follower.take(nonsense, 0.0)
        assert residents._expected == {}
        return
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        follower.take(nonsense, 0.0)
    assert residents._expected is before


@pytest.mark.parametrize("fault", ["hangs", "is dead", "talks nonsense"])
async def test_without_a_forecaster_it_goes_by_requests(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    for name in ("PERIOD_S", "ANSWER_S", "SILENT_S"):
        monkeypatch.setattr(plan_follower, name, 0.01)

    async def ask(_: Any) -> Any:
        if fault == "hangs":
            await asyncio.Event().wait()
        if fault == "is dead":
            raise ValueError("there is no such actor")
        return "nonsense"

    residents = await asleep(setup)
    residents.expect({"m": expected()})
    follower = PlanFollower("forecaster:app", "pool", "r", residents)
    monkeypatch.setattr(follower, "_ask", ask)
    follower.run()
    await state(residents, "m", "awake")
    await state(residents, "m", "asleep")
    async with residents.use("m"):
        assert residents.describe()["m"]["state"] == "awake"
    await follower.close()


class Actor:
    """A forecaster in this process; what is asked of it answers as Ray's methods do."""

    def __init__(self, *, is_dead: bool = False) -> None:
        self.left: list[str] = []
        self.heard = asyncio.Event()
        self._is_dead = is_dead

    @property
    def hear(self) -> Any:
        async def hear(_: Any) -> dict[str, Any]:
            self.heard.set()
            return {}

        return SimpleNamespace(remote=hear)

    @property
    def leave(self) -> Any:
        async def leave(replica_id: str) -> None:
            self.left.append(replica_id)
            if self._is_dead:
                raise RayActorError

        return SimpleNamespace(remote=leave)


@pytest.mark.parametrize("is_dead", [False, True])
async def test_who_ends_says_so(setup: Setup, monkeypatch: pytest.MonkeyPatch, *, is_dead: bool) -> None:
    actor = Actor(is_dead=is_dead)
    monkeypatch.setattr(ray, "get_actor", lambda *_: actor)
    follower = PlanFollower("forecaster:app", "pool", "r", await asleep(setup))
    follower.run()
    await actor.heard.wait()
    await follower.close()
    assert actor.left == ["r"]


def test_an_order_is_put_on_this_processs_clock() -> None:
    order = read_order({"expected_per_s": 0.5, "in_s": 2, "for_s": 3, "reason": "r"}, 100.0)
    assert order == Expectation(0.5, 102.0, 105.0, "r")
    told = {"expected_per_s": 0.5, "in_s": 2, "for_s": 3, "reason": "r", "adapters": {"acme/one": 0.5}}
    assert read_order(told, 100.0).adapters == {"acme/one": 0.5}
