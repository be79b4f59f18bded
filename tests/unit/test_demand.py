"""What a gateway counts reaches the forecaster once, however often it is away."""

import asyncio
from typing import Any

import pytest

from app import demand as demand_module
from app.demand import Demand
from autoscaler.errors import ReportError


class Forecaster:
    """Takes pushes as the real one does: each number of a source once."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, float], list[int]] = {}
        self.pushes: list[tuple[int, float, float]] = []
        self.fails: Exception | None = None
        self.loses_answers = False
        self._number = 0

    async def __call__(self, source: str, number: int, rows: list[Any], since_s: float, now_s: float) -> None:
        assert source == "gateway"
        if self.fails is not None:
            raise self.fails
        self.pushes.append((number, since_s, now_s))
        if number > self._number:
            self._number = number
            for series, at_s, requests, tokens in rows:
                counted = self.counts.setdefault((series, at_s), [0, 0])
                counted[0] += requests
                counted[1] += tokens
        if self.loses_answers:
            raise TimeoutError

    def total(self, place: int = 0) -> int:
        return sum(counted[place] for counted in self.counts.values())


class Setup:
    def __init__(self) -> None:
        self.now_s = 1000.0
        self.forecaster = Forecaster()
        self.demand = Demand("gateway", self.forecaster, lambda: self.now_s)


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_requests_and_tokens_are_counted_by_model_and_adapter(setup: Setup) -> None:
    setup.demand.asked("m")
    setup.demand.asked("m", "a")
    setup.now_s += 0.5
    setup.demand.asked("m")
    setup.demand.delivered("m", "a", 17)
    assert await setup.demand.push()
    assert setup.forecaster.counts == {("m", 1000.0): [2, 0], ("m:a", 1000.0): [1, 17]}


async def test_silence_is_told_too(setup: Setup) -> None:
    for _ in range(3):
        setup.now_s += 1
        assert await setup.demand.push()
    assert setup.forecaster.pushes == [(1, 1000.0, 1001.0), (2, 1001.0, 1002.0), (3, 1002.0, 1003.0)]


async def test_an_outage_loses_nothing_and_counts_nothing_twice(setup: Setup) -> None:
    setup.forecaster.fails = ValueError("there is no such actor")
    for second in range(50):
        setup.now_s = 1000.0 + second
        setup.demand.asked("m")
        assert not await setup.demand.push()
    setup.forecaster.fails, setup.forecaster.loses_answers = None, True
    for _ in range(3):
        assert not await setup.demand.push()
    setup.forecaster.loses_answers = False
    assert await setup.demand.push()
    assert await setup.demand.push()
    assert setup.forecaster.total() == 50
    assert [number for number, *_ in setup.forecaster.pushes] == [1, 1, 1, 1, 2]
    assert setup.forecaster.pushes[-1][1] <= 1001.0, "it has counted all the time"
    assert len(setup.forecaster.counts) == 50, "each in its second"


async def test_a_long_outage_is_kept_coarser_and_then_forgotten(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_module, "MAX_ROWS", 100)
    setup.forecaster.fails = TimeoutError()
    for second in range(2000):
        setup.now_s = 1000.0 + second
        setup.demand.asked("m")
        await setup.demand.push()
    assert len(setup.demand._counts) <= 100
    assert setup.demand.forgotten > 0
    setup.forecaster.fails = None
    while not await setup.demand.push() or setup.demand._counts:
        pass
    assert setup.forecaster.total() + setup.demand.forgotten == 2000


async def test_what_is_refused_holds_up_nothing(setup: Setup) -> None:
    setup.demand.asked("m")
    setup.forecaster.fails = ReportError("told to")
    assert not await setup.demand.push()
    setup.forecaster.fails = None
    setup.demand.asked("n")
    assert await setup.demand.push()
    assert setup.forecaster.counts == {("n", 1000.0): [1, 0]}
    assert setup.demand.forgotten == 1


async def test_a_forecaster_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_module, "ANSWER_S", 0.01)
    never = asyncio.Event()

    async def hang(*_: Any) -> None:
        await never.wait()

    demand = Demand("gateway", hang)
    demand.asked("m")
    assert not await demand.push()
    assert demand._batch is not None
    assert demand._batch.rows[0][2] == 1
