from typing import Any

from app.engine_states import UNHEARD_OF, merged


def engine(state: str, **fields: object) -> Any:
    return UNHEARD_OF | {"state": state} | fields


def test_a_model_is_as_near_as_its_nearest_engine() -> None:
    one = {"a": engine("asleep", wakes=2, requests=0, is_up=True, arrived=4), "b": engine("cold", reason="it died")}
    two = {"a": engine("awake", wakes=1, requests=3, waiting=1, started_in_s=2.0, arrived=5, arriving=1)}
    both = merged([one, two])
    assert both["a"]["state"] == "awake"
    assert both["a"]["started_in_s"] == 2.0
    assert [both["a"][key] for key in ("wakes", "requests", "waiting", "is_up")] == [3, 3, 1, True]
    assert (both["a"]["arriving"], both["a"]["arrived"]) == (1, 9)
    assert both["b"] == one["b"]
    assert merged([]) == {}


def test_a_failed_engine_does_not_hide_one_that_can_be_woken() -> None:
    assert merged([{"a": engine("failed")}, {"a": engine("asleep")}])["a"]["state"] == "asleep"
