import pytest

from app.errors import InvalidRequestError, ModelNotFoundError
from app.names import NameTable, Target
from deployments.types import AdapterSpec, ModelSpec


def spec(model_id: str, *adapter_ids: str) -> ModelSpec:
    return ModelSpec(model_id, "", adapters=tuple(AdapterSpec(adapter_id, "", "") for adapter_id in adapter_ids))


def test_models_and_adapters_by_every_name() -> None:
    names = NameTable([spec("base", "pirate"), spec("other")])
    assert names.resolve("base") == Target("base")
    assert names.resolve("pirate") == names.resolve("base:pirate") == Target("base", "pirate")
    assert names.resolve("pirate").served_name == "pirate"


def test_an_adapter_on_two_models_needs_its_model() -> None:
    names = NameTable([spec("one", "pirate"), spec("two", "pirate")])
    assert names.resolve("two:pirate") == Target("two", "pirate")
    with pytest.raises(InvalidRequestError, match="`one:pirate`, `two:pirate`") as caught:
        names.resolve("pirate")
    assert caught.value.param == "model"


def test_a_model_wins_over_an_adapter_of_its_name() -> None:
    names = NameTable([spec("one", "two"), spec("two")])
    assert names.resolve("two") == Target("two")
    assert names.resolve("one:two") == Target("one", "two")


@pytest.mark.parametrize("name", ["nobody", "base:nobody", "nobody:pirate", "base:", ":pirate", "other:pirate"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        NameTable([spec("base", "pirate"), spec("other")]).resolve(name)


@pytest.mark.parametrize("name", [None, ""])
def test_a_name_is_required(name: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        NameTable([spec("base")]).resolve(name)
    assert caught.value.param == "model"


def owned(model_id: str, *owners: str | None) -> ModelSpec:
    return ModelSpec(model_id, "", adapters=tuple(AdapterSpec("pirate", "", "", owner) for owner in owners))


def table(tenant: str, *specs: ModelSpec) -> NameTable:
    return NameTable(specs, lambda target: target.owner in {None, tenant}, tenant)


def test_of_one_name_everybody_means_their_own_and_the_others_the_operators() -> None:
    base = owned("base", "acme", None, "globex")
    for tenant, owner in (("acme", "acme"), ("globex", "globex"), ("third", None)):
        names = table(tenant, base)
        assert names.resolve("pirate") == names.resolve("base:pirate") == Target("base", "pirate", owner)
        assert names.listed == [("pirate", Target("base", "pirate", owner))]
        for other in {"acme", "globex"} - {tenant}:
            for name in (f"{other}/pirate", f"base:{other}/pirate"):
                with pytest.raises(ModelNotFoundError):
                    names.resolve(name)


def test_who_sees_all_of_them_says_whose() -> None:
    names = NameTable([owned("base", "acme", "globex"), owned("other", "acme")])
    with pytest.raises(ModelNotFoundError):
        names.resolve("pirate")
    assert names.resolve("globex/pirate") == Target("base", "pirate", "globex")
    assert names.resolve("other:acme/pirate") == Target("other", "pirate", "acme")
    with pytest.raises(InvalidRequestError, match="`base:acme/pirate`, `other:acme/pirate`"):
        names.resolve("acme/pirate")
    assert [name for name, _ in names.listed] == ["acme/pirate", "globex/pirate", "acme/pirate"]
