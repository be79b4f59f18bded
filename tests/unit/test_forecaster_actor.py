"""The forecaster's loops, without Ray: it learns, plans and remembers, and none of its troubles ends the others."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoscaler import actor as actor_module
from autoscaler import neural
from autoscaler.actor import ForecasterActor
from autoscaler.errors import ForecastError, ReportError
from autoscaler.history import History
from autoscaler.nodes_ahead import NodesAhead
from autoscaler.types import Count

SERVED = {"m": ("pool", 8)}
POOLS = {"pool": (0, 3, {"CPU": 1.0})}
REPORT = {"replica_id": "r", "pool": "pool", "engines": {"m": {"state": "asleep", "wake_s": 0.4, "start_s": 3.0}}}


class Setup:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.made: list[ForecasterActor] = []
        self.asked: list[Any] = []

    async def __call__(self, **config: Any) -> ForecasterActor:
        made = ForecasterActor({"bucket_s": 1, "neural": False} | config, str(self.directory / "history.db"))
        made._nodes = NodesAhead(self.directory / "asked", self.asked.append, lambda: [{"CPU": 2.0}])
        self.made.append(made)
        await made.serves(SERVED, POOLS)
        return made


@pytest.fixture
async def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr(actor_module, "TICK_S", 0.05)
    made = Setup(tmp_path)
    yield made
    for each in made.made:
        await each.close()


async def told(forecaster: ForecasterActor, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            plan = await forecaster.plan()
            if plan.get("models") and holds(plan):
                return plan
            await asyncio.sleep(0.01)


async def push(forecaster: ForecasterActor, number: int, at_s: float, requests: int = 1) -> None:
    await forecaster.push("gateway", number, [["m", at_s, requests, 10]], at_s, time.time())


async def test_what_is_pushed_is_planned_with_and_kept(setup: Setup) -> None:
    forecaster = await setup()
    now_s = float(int(time.time()))
    for number in range(10):
        await push(forecaster, number, now_s - 60 * (10 - number), 3)
    orders = {}
    async with asyncio.timeout(10):
        while "m" not in orders:
            orders = await forecaster.hear(REPORT)
            await asyncio.sleep(0.01)
    assert set(orders["m"]) == {"expected_per_s", "in_s", "for_s", "reason"}
    plan = await told(forecaster, lambda plan: plan["models"]["m"]["gaps_seen"] == 9)
    assert plan["problems"] == {}
    assert plan["age_s"] < 5
    assert plan["models"]["m"]["engines"] == {"r": "asleep"}
    assert len((await forecaster.pool_plan("pool") or {})["need"]) > 0
    assert await forecaster.pool_plan("another") is None
    with History(setup.directory / "history.db") as history:
        await told(forecaster, lambda _: np.nansum(history.read(["m"], 60, now_s - 1200, now_s + 60).counts) == 30)


async def test_another_one_has_learnt_what_the_last_one_knew(setup: Setup) -> None:
    now_s = float(int(time.time()))
    with History(setup.directory / "history.db") as history:
        for number in range(60):
            history.push([Count("m", now_s - 40 * (60 - number), 2)], now_s)
    forecaster = await setup()
    plan = await told(forecaster, lambda plan: plan["models"]["m"]["gaps_seen"] > 40)
    assert 30 < plan["models"]["m"]["quiet_s"] < 60


async def test_it_remembers_what_was_asked_for_through_adapters(setup: Setup) -> None:
    now_s = float(int(time.time()))
    with History(setup.directory / "history.db") as history:
        for number in range(60):
            counts = [Count(f"m:{'two' if number % 3 else 'one'}", now_s - 700 - 20 * number, 4)]
            history.push(counts, now_s)
    forecaster = await setup()
    plan = await told(forecaster, lambda plan: plan["models"]["m"]["gaps_seen"] > 20)
    assert plan["problems"] == {}
    orders: dict[str, Any] = {}
    async with asyncio.timeout(10):
        while "m" not in orders:
            orders = await forecaster.hear(REPORT)
            await asyncio.sleep(0.01)
    assert orders["m"]["adapters"] == pytest.approx({"two": 2 / 3, "one": 1 / 3}, abs=0.1)


async def test_counts_of_a_clock_that_is_wrong_are_of_now(setup: Setup) -> None:
    forecaster = await setup()
    now_s = time.time()
    for wrong_s in (-1e6, 1e6):
        counted_s = now_s + wrong_s
        await forecaster.push(f"clock {wrong_s}", 1, [["m", counted_s - 5, 7, 0]], counted_s - 6, counted_s)
    await told(forecaster, lambda plan: plan["models"]["m"]["quiet_s"] is not None)
    with History(setup.directory / "history.db") as history:
        await told(forecaster, lambda _: np.nansum(history.read(["m"], 1, now_s - 60, now_s + 1).counts) == 14)


async def test_nodes_are_asked_for_once_the_plan_outgrows_them(setup: Setup) -> None:
    forecaster = await setup()
    await told(forecaster, lambda _: True)
    forecaster._plan["pools"]["pool"]["need"] = [1, 3, 0]
    await forecaster._look_ahead()
    assert setup.asked == [[{"CPU": 1.0}] * 3]
    await forecaster.close()
    assert setup.asked[-1] == [], "withdrawn when it ends"


async def test_a_models_demand_lately(setup: Setup) -> None:
    forecaster = await setup()
    now_s = float(int(time.time()))
    await push(forecaster, 1, now_s - 5, 7)
    await told(forecaster, lambda _: True)
    async with asyncio.timeout(10):
        while True:
            demand = (await forecaster.plan("m"))["models"]["m"]["demand"]
            if 7.0 in demand["requests"]:
                break
            await asyncio.sleep(0.01)
    assert demand["step_s"] == 1
    assert None in demand["requests"], "nobody counted before"
    assert (await forecaster.plan("unknown"))["models"] == {}


async def test_a_model_that_is_gone_is_planned_for_no_more(setup: Setup) -> None:
    forecaster = await setup()
    await told(forecaster, lambda plan: "m" in plan["models"])
    await forecaster.serves({"n": ("pool", 8)}, POOLS)
    await told(forecaster, lambda plan: set(plan["models"]) == {"n"})


@pytest.mark.parametrize("nonsense", [None, {}, {"replica_id": "r"}, REPORT | {"engines": {"m": {"state": 7}}}])
async def test_nonsense_is_refused_and_the_plan_goes_on(setup: Setup, nonsense: Any) -> None:
    forecaster = await setup()
    with pytest.raises(ReportError):
        await forecaster.hear(nonsense)
    with pytest.raises(ReportError):
        await forecaster.push("gateway", 1, nonsense or [["m"]], 0.0, 0.0)
    made_at_s = (await told(forecaster, lambda _: True))["made_at_s"]
    await told(forecaster, lambda plan: plan["made_at_s"] > made_at_s)


async def test_a_locked_history_holds_up_no_plan_and_is_told(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoscaler.history.LOCK_WAIT_S", 0.01)
    forecaster = await setup()
    await told(forecaster, lambda _: True)
    other = sqlite3.connect(setup.directory / "history.db", timeout=10)
    other.execute("BEGIN EXCLUSIVE")
    await push(forecaster, 1, float(int(time.time()) - 5))
    plan = await told(forecaster, lambda plan: "history" in plan["problems"])
    await told(forecaster, lambda later: later["made_at_s"] > plan["made_at_s"])
    other.rollback()
    await told(forecaster, lambda plan: "history" not in plan["problems"])
    assert np.nansum(History(setup.directory / "history.db").read(["m"], 1, time.time() - 60, time.time()).counts) == 1


def days(number: int) -> list[Count]:
    now_s = time.time()
    return [Count("m", now_s - 600 * index, 30) for index in range(number * 144)]


@pytest.mark.parametrize("fault", ["fails", "never ends", "predicts nonsense", "predicts nothing"])
async def test_whatever_becomes_of_neuralprophet_the_plan_goes_on(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    over = threading.Event()

    def fit(*_: Any, **__: Any) -> Path:
        if fault == "fails":
            raise ForecastError(neural.NAME, "told to fail")
        if fault == "never ends":
            over.wait(30)
        return Path("fitted")

    def predict(*_: Any, **__: Any) -> Any:
        if fault == "predicts nothing":
            raise ForecastError(neural.NAME, "told to fail")
        return np.full((1, 48, 4, 3), np.nan)

    monkeypatch.setattr(neural, "fit", fit)
    monkeypatch.setattr(neural, "predict", predict)
    with History(setup.directory / "history.db") as history:
        history.import_log(days(3), time.time())
    forecaster = await setup(neural=True)
    await forecaster._see_fine()
    refitting = asyncio.ensure_future(forecaster._guarded(neural.NAME, forecaster._refit))
    if fault != "never ends":
        await refitting
        await forecaster._guarded("season", forecaster._see_coarse)
    plan = await told(forecaster, lambda plan: plan["models"]["m"]["forecast"])
    await told(forecaster, lambda later: later["made_at_s"] > plan["made_at_s"])
    assert plan["models"]["m"]["forecast"]["by"] != neural.NAME
    assert (neural.NAME in plan["problems"]) == (fault in {"fails", "predicts nothing"})
    over.set()
    await refitting
