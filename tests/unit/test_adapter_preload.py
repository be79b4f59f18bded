"""Which adapters are loaded ahead, into which engines, and that nothing is done where nothing is to gain."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.adapter_leases import AdapterLeases
from deployments.adapter_preload import REST_S, STAYS, AdapterPreloader, to_load
from deployments.adapters import AdapterPlaces
from deployments.engine_view import Expectation
from deployments.errors import RequestRejectedError
from deployments.fake_engine import FakeEngine
from deployments.types import AdapterRef, AdapterSpec
from storage.adapter_files import AdapterFiles
from tests.support.gated_engines import GatedEngine, Setup, spec


def adapter(name: str, owner: str | None = None) -> AdapterSpec:
    return AdapterSpec(name, f"/{name}", name[0] * 64, owner)


A, B, C, D = (adapter(name) for name in "abcd")


def names(found: list[AdapterSpec]) -> str:
    return "".join(each.id for each in found)


def places(host: str = "", dram: str = "") -> AdapterPlaces:
    held = {where: frozenset(name * 64 for name in what) for where, what in (("host", host), ("dram", dram))}
    return AdapterPlaces(**held, dram_s=0.01, elsewhere_s=0.1)


SHARES = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}


@pytest.mark.parametrize(
    ("host", "dram", "room", "expected"),
    [
        ("", "", 2, "ba"),
        # What is there already is used again, so that it stays.
        ("a", "", 2, "ba"),
        ("ab", "", 2, ""),
        ("ab", "", 9, "dcba"),
        # To have it from dram takes a tenth, so what would come from disk saves more.
        ("", "ab", 2, "dc"),
        ("abcd", "abcd", 4, ""),
        ("abcd", "abcd", 2, ""),
    ],
)
def test_those_that_save_most_waiting(host: str, dram: str, room: int, expected: str) -> None:
    assert names(to_load((A, B, C, D), SHARES, places(host, dram), room)) == expected


def test_nearly_equals_do_not_take_turns() -> None:
    shares = {"a": 0.2, "b": 0.2 * STAYS - 0.01}
    assert to_load((A, B), shares, places("a"), 1) == []
    assert names(to_load((A, B), {"a": 0.2, "b": 0.2 * STAYS + 0.01}, places("a"), 1)) == "b"


def test_whose_owner_it_is_makes_another_of_it() -> None:
    own = adapter("a", "acme")
    assert to_load((A, own), {"acme/a": 1.0}, places(), 1) == [own]
    assert to_load((A, own), {"unknown": 1.0}, places(), 1) == []


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1)), st.sets(st.sampled_from("abcd")), st.integers(0, 5))
def test_never_more_than_there_is_room_for(shares: dict[str, float], host: set[str], room: int) -> None:
    found = to_load((A, B, C, D), shares, places("".join(host)), room)
    assert len(found) <= room
    assert all(shares[each.id] > 0 for each in found)
    # Once they are there, nothing is left to do.
    if found:
        assert to_load((A, B, C, D), shares, places(names(found)), room) == []


class Engine(GatedEngine):
    """Remembers what it was told to have ahead; what is called ``d`` doesn't fit."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.preloaded: list[str] = []

    async def preload_adapter(self, adapter: AdapterRef) -> None:
        self.preloaded.append(adapter["id"])
        if adapter["id"] == "d":
            raise RequestRejectedError("it does not fit")
        await super().preload_adapter(adapter)


class Engines(Setup):
    def _make(self, spec: Any) -> GatedEngine:
        self.engines.setdefault(spec.id, []).append(Engine(spec))
        return self.engines[spec.id][-1]


@pytest.fixture
async def setup() -> AsyncIterator[Engines]:
    FakeEngine.failed_starts.clear()
    made = Engines()
    yield made
    for each in made.made:
        await each.close()


def expected(**shares: float) -> Expectation:
    return Expectation(0.5, 0.0, 1e9, "told so", shares)


async def test_into_engines_that_are_awake_and_have_nothing_to_do(setup: Engines) -> None:
    models = [
        spec(name, lora_enabled=True, max_loras=2, adapters=(A, B, C)) for name in ("idle", "busy", "asleep", "untold")
    ]
    residents = await setup(*models, spec("without", adapters=()))
    await residents.sleep("asleep")
    residents.expect({name: expected(a=0.5, b=0.3, c=0.2) for name in ("idle", "busy", "asleep", "without")})
    residents.expect(residents._expected | {"untold": Expectation(0.5, 0.0, 0.0, "told so")})
    preloader = AdapterPreloader(residents, AdapterLeases(None))
    async with residents.use("busy"):
        await preloader.look()
    asked = {name: engines[-1].preloaded for name, engines in setup.engines.items() if isinstance(engines[-1], Engine)}
    assert asked == {"idle": ["b", "a"], "busy": [], "asleep": [], "untold": [], "without": []}
    assert {name[0] for name in await setup.engines["idle"][-1].adapters()} == {"a", "b"}


async def test_as_many_as_the_engine_has_host_memory_for(setup: Engines) -> None:
    residents = await setup(spec("m", lora_enabled=True, max_loras=1, engine={"max_cpu_loras": 3}, adapters=(A, B, C)))
    residents.expect({"m": expected(a=0.5, b=0.3, c=0.2)})
    await AdapterPreloader(residents, AdapterLeases(None)).look()
    assert setup.engines["m"][-1].preloaded == ["c", "b", "a"]  # type: ignore[attr-defined]


async def test_one_that_does_not_fit_rests_and_the_others_come(setup: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    residents = await setup(spec("m", lora_enabled=True, max_loras=4, adapters=(A, D)))
    residents.expect({"m": expected(a=0.5, d=0.1)})
    preloader = AdapterPreloader(residents, AdapterLeases(None))
    clock_s = [0.0]
    monkeypatch.setattr("deployments.adapter_preload.time.monotonic", lambda: clock_s[0])
    engine: Any = setup.engines["m"][-1]
    for _ in range(3):
        await preloader.look()
    assert engine.preloaded[:2] == ["d", "a"]
    assert engine.preloaded.count("d") == 1
    clock_s[0] = REST_S + 1
    await preloader.look()
    assert engine.preloaded.count("d") == 2


async def test_its_files_are_fetched_and_held_meanwhile(setup: Engines, tmp_path: Path) -> None:
    residents = await setup(spec("m", lora_enabled=True, max_loras=2, adapters=(A,)))
    residents.expect({"m": expected(a=1.0)})
    await AdapterPreloader(residents, AdapterLeases(AdapterFiles(tmp_path / "disk"))).look()
    assert setup.engines["m"][-1].preloaded == [], "there is nothing at its path"  # type: ignore[attr-defined]
