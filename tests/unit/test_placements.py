"""Which replicas are there, and who is told when one goes."""

import asyncio

import pytest

from deployments.placements import Placements


@pytest.fixture
def placements() -> Placements:
    made = Placements()
    made.replicas("engines", ["a", "b"])
    made.replicas("others", ["x"])
    return made


def test_who_runs_on_a_replica_that_goes_is_told_once(placements: Placements) -> None:
    told: list[str] = []
    for attempt, replica in (("1", "a"), ("2", "b"), ("3", "a")):
        placements.watch(attempt, "model", lambda attempt=attempt: told.append(attempt))  # type: ignore[misc]
        placements.placed(attempt, replica)
    placements.replicas("engines", ["b", "c"])
    placements.replicas("engines", ["b", "c"])
    assert told == ["1", "3"]


def test_who_is_placed_on_a_replica_that_has_just_gone_is_told_too(placements: Placements) -> None:
    told: list[str] = []
    placements.watch("1", "model", lambda: told.append("1"))
    placements.replicas("engines", ["b"])
    placements.placed("1", "a")
    assert told == ["1"]


def test_who_is_forgotten_is_told_nothing(placements: Placements) -> None:
    told: list[str] = []
    placements.watch("1", "model", lambda: told.append("1"))
    placements.placed("1", "a")
    placements.forget("1")
    placements.forget("1")
    placements.placed("1", "a")
    placements.replicas("engines", [])
    assert told == []
    assert placements.replica_of("1") is None


async def test_waiting_for_another_replica_of_the_same_deployment(placements: Placements) -> None:
    placements.watch("1", "model", lambda: None)
    placements.placed("1", "a")
    placements.replicas("engines", ["a"])
    waiting = asyncio.ensure_future(placements.another_than("1"))
    placements.replicas("others", ["x", "y"])
    placements.replicas("engines", [])
    await asyncio.sleep(0)
    assert not waiting.done()
    placements.replicas("engines", ["c"])
    async with asyncio.timeout(1):
        await waiting


def test_the_busiest_replica_of_a_model(placements: Placements) -> None:
    assert placements.busiest("model") is None
    for attempt, model, replica in (("1", "model", "a"), ("2", "model", "b"), ("3", "model", "b"), ("4", "other", "a")):
        placements.watch(attempt, model, lambda: None)
        placements.placed(attempt, replica)
    assert placements.busiest("model") == "b"
    assert placements.busiest("other") == "a"
