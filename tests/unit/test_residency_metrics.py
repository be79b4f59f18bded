"""What a replica tells of its engines, with the engines' stand-ins and a watcher that remembers."""

import asyncio
from collections import Counter
from collections.abc import Mapping

from deployments.fake_engine import FakeEngine
from deployments.residency import Limits
from deployments.residency_watch import Unwatched
from deployments.residents import Residents
from deployments.types import EngineState, ModelSpec


class Watcher(Unwatched):
    def __init__(self) -> None:
        self.holds: list[EngineState] = []
        self.states: list[EngineState] = []
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.sights: list[tuple[EngineState, int, int]] = []

    def held(self, model_id: str, state: EngineState, seconds: float) -> None:
        assert model_id == "m"
        assert seconds >= 0
        self.holds.append(state)

    def changed(self, model_id: str, before: EngineState | None, now: EngineState) -> None:  # noqa: ARG002
        assert before == (self.states[-1] if self.states else None)
        self.states.append(now)

    def spent(self, model_id: str, spent: Mapping[tuple[str, str], float]) -> None:  # noqa: ARG002
        self.seconds.update(spent)  # type: ignore[arg-type]

    def seen(self, model_id: str, state: EngineState, waiting: int, held_bytes: int) -> None:  # noqa: ARG002
        self.sights.append((state, waiting, held_bytes))


async def test_holds_states_time_and_sights_are_told() -> None:
    residents = Residents([ModelSpec("m", "")], FakeEngine, Limits(10_000, 0.05, 1.0), 10)
    residents.watch = watcher = Watcher()
    residents.run()
    try:
        async with residents.use("m", tenant="acme"):
            await asyncio.sleep(0.02)
        async with residents.use("m"):
            pass
        await residents.sleep("m")
        async with residents.use("m", tenant="globex"):
            await asyncio.sleep(0.01)
    finally:
        await residents.close()
    assert watcher.states[:3] == ["cold", "starting", "awake"]
    assert {"sleeping", "asleep", "waking"} <= set(watcher.states)
    assert len(watcher.holds) == 3
    assert watcher.holds[0] in {"cold", "starting"}
    assert watcher.holds[1:] == ["awake", "asleep"]
    assert watcher.seconds["busy", "acme"] >= 0.02
    assert watcher.seconds["busy", "globex"] >= 0.01
    assert {use for use, _ in watcher.seconds} <= {"busy", "idle", "asleep", "changing"}
    assert {tenant for use, tenant in watcher.seconds if use != "busy"} <= {""}
    assert any(state == "awake" and held_bytes > 0 for state, _, held_bytes in watcher.sights)
