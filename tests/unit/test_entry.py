"""Which engines there may be of a model, and whose requests go to which."""

from dataclasses import replace
from pathlib import Path

from app.catalogue import Catalogue
from app.entry import Entry, by_engine, everybodys
from app.forecaster import served
from deployments.types import AdapterSpec, ModelSpec

ADAPTERS = (
    AdapterSpec("all", "/all", "1"),
    AdapterSpec("mine", "/mine", "2", owner="acme"),
    AdapterSpec("theirs", "/theirs", "3", owner="globex"),
)
SPEC = ModelSpec("m", "/m", lora_enabled=True, adapters=ADAPTERS)
ENTRY = Entry(SPEC, {}, "pool", {}, own_engines=("acme",))


def test_without_tenants_of_its_own_a_model_has_one_engine() -> None:
    assert Entry(SPEC, {}, "pool", {}).engines() == [SPEC]


def test_a_tenants_engine_shares_the_weights_and_has_its_adapters_alone() -> None:
    everybodys, own = ENTRY.engines()
    assert everybodys == SPEC
    assert own.id == ENTRY.engine_id("acme") == "m@acme"
    assert own.shares_weights
    assert [adapter.id for adapter in own.adapters] == ["all", "mine"]
    assert ENTRY.engine_id("globex") == ENTRY.engine_id("") == "m"


def test_what_was_made_for_one_engine_does_not_reach_another() -> None:
    everybodys, own = ENTRY.engines()
    assert everybodys.revision != own.revision


def test_on_a_gpu_everybodys_engine_shares_its_weights_with_tenants_own() -> None:
    on_gpu = replace(SPEC, device="gpu")
    assert everybodys(on_gpu, ("acme",)).shares_weights
    assert not everybodys(on_gpu, ()).shares_weights, "with nobody"
    assert not everybodys(SPEC, ("acme",)).shares_weights, "on a CPU what is shared is the node's"


async def test_replicas_and_forecasts_hear_of_every_engine(tmp_path: Path) -> None:
    other = Entry(ModelSpec("other", "/other", concurrency=3), {}, "elsewhere", {})
    found = await Catalogue([ENTRY, other], tmp_path).hosted("pool", None)
    assert found is not None
    _, specs, digests = found
    assert [spec.id for spec in specs] == ["m", "m@acme"]
    assert digests == {"1", "2", "3"}
    assert served([ENTRY, other]) == {"m": ("pool", 8), "m@acme": ("pool", 8), "other": ("elsewhere", 3)}
    assert {engine: entry.spec.id for engine, entry in by_engine([ENTRY, other]).items()} == {
        "m": "m", "m@acme": "m", "other": "other",
    }  # fmt: skip
