"""Which replica would give a first token soonest."""

from collections import Counter

import pytest

from deployments.estimate import FIRST_TOKEN_S, NO_ROOM_S, STALE_S, ReplicaView, first_token_s, soonest
from deployments.wire import EngineNews, ReplicaNews

NOW_S = 1000.0


def engine(state: str = "awake", **fields: object) -> EngineNews:
    defaults = {
        "age_s": 1.0, "start_s": 3.0, "wake_s": 0.3, "first_token_s": 0.1, "load": 0, "in_hand": 0, "needs_bytes": 0,
    }  # fmt: skip
    return EngineNews(state, **(defaults | fields))  # type: ignore[arg-type]


def view(*, room_bytes: int = 100, heard_s: float = NOW_S, **engines: EngineNews) -> ReplicaView:
    made = ReplicaView.empty()
    made.hear(ReplicaNews("pool", "any", engines, [], room_bytes), heard_s)
    return made


def estimate(of: EngineNews, **fields: object) -> float | None:
    return first_token_s(view(m=of, **fields), "m", NOW_S)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("of", "expected_s"),
    [
        (engine("awake"), 0.1),
        (engine("awake", first_token_s=0.0), FIRST_TOKEN_S),
        (engine("awake", in_hand=3), 0.4),
        (engine("awake", in_hand=3, load=3), 0.1),
        (engine("asleep"), 0.4),
        (engine("sleeping"), 0.4),
        (engine("waking", age_s=0.1), 0.3),
        (engine("waking", age_s=9.0), 0.1),
        (engine("starting", age_s=1.0), 2.1),
        (engine("cold"), 3.1),
        (engine("stopping"), 3.1),
        (engine("failed"), float("inf")),
        (engine("asleep", needs_bytes=101), 0.4 + NO_ROOM_S),
        (engine("awake", needs_bytes=101), 0.1),
    ],
)
def test_it_is_queue_and_waking_and_prefill(of: EngineNews, expected_s: float) -> None:
    assert estimate(of) == pytest.approx(expected_s)


def test_time_goes_on_after_the_news() -> None:
    assert estimate(engine("waking", age_s=0.0, wake_s=2.0), heard_s=NOW_S - 1.5) == pytest.approx(0.6)


def test_old_news_are_no_news() -> None:
    assert estimate(engine(), heard_s=NOW_S - STALE_S - 0.1) is None
    assert first_token_s(view(m=engine()), "other", NOW_S) is None


def test_what_was_sent_since_counts() -> None:
    seen = view(m=engine())
    seen.sent["m"] = 2
    assert first_token_s(seen, "m", NOW_S) == pytest.approx(0.3)
    seen.hear(ReplicaNews("pool", "any", {}, [], 100), NOW_S)
    assert first_token_s(seen, "m", NOW_S) == pytest.approx(0.1)


def test_news_add_up_and_models_go() -> None:
    seen = view(a=engine(), b=engine("asleep"))
    seen.hear(ReplicaNews("pool", "any", {"b": engine()}, ["a"], 7), NOW_S)
    assert set(seen.engines) == {"b"}
    assert seen.engines["b"].state == "awake"
    assert seen.room_bytes == 7


def chosen(views: dict[str, ReplicaView], saved_s: dict[str, float] | None = None) -> str | None:
    return soonest(views, "m", NOW_S, saved_s or {})


def test_the_awake_one_before_the_asleep_one_before_the_cold_one() -> None:
    views = {"cold": view(m=engine("cold")), "asleep": view(m=engine("asleep")), "awake": view(m=engine("awake"))}
    assert chosen(views) == "awake"
    del views["awake"]
    assert chosen(views) == "asleep"


def test_a_busy_one_loses_to_one_that_wakes_quickly() -> None:
    views = {"busy": view(m=engine(in_hand=20)), "asleep": view(m=engine("asleep"))}
    assert chosen(views) == "asleep"


def test_a_prefix_draws_a_request_until_the_queue_costs_more() -> None:
    views = {"has": view(m=engine(in_hand=1)), "idle": view(m=engine())}
    assert chosen(views) == "idle"
    assert chosen(views, {"has": 0.15}) == "has"


def test_among_equals_chance_decides() -> None:
    views = {name: view(m=engine()) for name in "abc"}
    counts = Counter(chosen(views) for _ in range(300))
    assert set(counts) == {"a", "b", "c"}
    assert min(counts.values()) > 50


def test_nothing_known_is_no_choice() -> None:
    assert chosen({}) is None
    assert chosen({"old": view(m=engine(), heard_s=0.0)}) is None
    assert soonest({"a": view(m=engine())}, "m", NOW_S, {}, avoid=["a"]) is None
