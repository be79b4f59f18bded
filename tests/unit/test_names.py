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
