"""A replica's forecasts reach the node's store, by snapshot."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from deployments import expected_rates
from deployments.engine_view import Expectation
from deployments.expected_rates import RatesTeller, snapshot_rates
from storage.errors import StoreUnreachableError
from storage.expected import SILENT_S, ExpectedRates
from tests.support.gated_engines import Setup, spec


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    yield made
    for each in made.made:
        await each.close()


def test_what_replicas_expect_is_added_up_and_forgotten_when_they_are_silent() -> None:
    expected = ExpectedRates()
    expected.hear("a", {"s": 1.0}, 0.0)
    expected.hear("b", {"s": 2.0, "t": 0.0}, 10.0)
    assert expected.per_s("s", 10.0) == 3.0
    assert expected.per_s("t", 10.0) == 0.0
    assert expected.per_s("unknown", 10.0) is None
    assert expected.per_s("s", SILENT_S + 5.0) == 2.0
    expected.hear("b", {}, 20.0)
    assert expected.per_s("s", 20.0) == 1.0, "what it says replaces what it said"


async def test_models_with_one_snapshot_are_expected_together(setup: Setup) -> None:
    made = await setup(spec("a"), spec("b"))
    made.expect({name: Expectation(0.5, 0.0, 0.0, "test") for name in ("a", "b", "unknown")})
    assert snapshot_rates(made.planned()) == {"its snapshot": 1.0}


async def test_it_is_told_again_after_the_store_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected_rates, "PERIOD_S", 0.0)
    told: list[Mapping[str, float]] = []
    answered = asyncio.Event()

    async def tell(rates: Mapping[str, float]) -> None:
        told.append(rates)
        if len(told) == 1:
            raise StoreUnreachableError("store", "it is being started")
        answered.set()

    teller = RatesTeller(lambda: {"s": 1.0}, tell)
    teller.run()
    async with asyncio.timeout(10):
        await answered.wait()
    teller.close()
    assert told[:2] == [{"s": 1.0}, {"s": 1.0}]
