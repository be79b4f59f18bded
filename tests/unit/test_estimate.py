"""Which replica would give a first token soonest."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.estimate import FIRST_TOKEN_S, NO_ROOM_S, STALE_S, PoolView
from deployments.wire import AdapterNews, EngineNews, ReplicaNews
from tests.support import plain_estimate

NOW_S = 1000.0


def engine(state: str = "awake", **fields: object) -> EngineNews:
    defaults = {
        "age_s": 1.0, "start_s": 3.0, "wake_s": 0.3, "first_token_s": 0.1, "load": 0, "in_hand": 0, "needs_bytes": 0,
    }  # fmt: skip
    return EngineNews(state, **(defaults | fields))  # type: ignore[arg-type]


def pool(replicas: dict[str, EngineNews], *, room_bytes: int = 100, heard_s: float = NOW_S) -> PoolView:
    """Replicas that have said how model m stands with them."""
    made = PoolView()
    for replica_id, of in replicas.items():
        made.hear(ReplicaNews("pool", replica_id, {"m": of}, [], room_bytes), heard_s)
    return made


def estimate(of: EngineNews, **fields: object) -> float | None:
    return pool({"r": of}, **fields).least_s("m", NOW_S)  # type: ignore[arg-type]


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
    assert pool({"r": engine()}).least_s("other", NOW_S) is None


def test_what_was_sent_since_counts() -> None:
    seen = pool({"r": engine()})
    seen.send("r", "m")
    seen.send("r", "m")
    assert seen.least_s("m", NOW_S) == pytest.approx(0.3)
    seen.hear(ReplicaNews("pool", "r", {}, [], 100), NOW_S)
    assert seen.least_s("m", NOW_S) == pytest.approx(0.1)


def test_news_add_up_and_models_go() -> None:
    seen = PoolView()
    seen.hear(ReplicaNews("pool", "r", {"a": engine(), "b": engine("asleep", needs_bytes=8)}, [], 8), NOW_S)
    assert seen.least_s("b", NOW_S) == pytest.approx(0.4)
    seen.hear(ReplicaNews("pool", "r", {"a": engine(in_hand=1)}, ["b"], 7), NOW_S)
    assert seen.least_s("a", NOW_S) == pytest.approx(0.2)
    assert seen.least_s("b", NOW_S) is None
    assert repr(seen) == "<PoolView of 1 replicas, 1 models>"


def test_an_engine_that_has_died_is_cold_until_its_replica_says_more() -> None:
    seen = pool({"r": engine("waking", age_s=0.2)})
    seen.lose_engine("r", "m")
    seen.lose_engine("r", "other")
    seen.lose_engine("another", "m")
    assert seen.least_s("m", NOW_S) == pytest.approx(3.1)
    seen.hear(ReplicaNews("pool", "r", {"m": engine()}, [], 8), NOW_S)
    assert seen.least_s("m", NOW_S) == pytest.approx(0.1)


def test_whoever_takes_the_place_of_a_lost_replica_has_nothing_of_its() -> None:
    seen = pool({"lost": engine(), "stays": engine("cold")})
    seen.send("lost", "m")
    seen.lose("lost")
    seen.lose("lost")
    assert seen.is_silent("lost", NOW_S)
    seen.hear(ReplicaNews("pool", "new", {}, [], 8), NOW_S)
    assert sorted(seen.ids()) == ["new", "stays"]
    assert chosen(seen) == "stays"
    seen.hear(ReplicaNews("pool", "new", {"m": engine()}, [], 8), NOW_S)
    assert seen.first_tokens_s("m", NOW_S) == pytest.approx({"new": 0.1, "stays": 3.1})


def chosen(seen: PoolView, saved_s: dict[str, float] | None = None) -> str | None:
    return seen.soonest("m", NOW_S, saved_s or {})


def test_the_awake_one_before_the_asleep_one_before_the_cold_one() -> None:
    seen = pool({"cold": engine("cold"), "asleep": engine("asleep"), "awake": engine("awake")})
    assert chosen(seen) == "awake"
    seen.lose("awake")
    assert chosen(seen) == "asleep"


def test_a_busy_one_loses_to_one_that_wakes_quickly() -> None:
    assert chosen(pool({"busy": engine(in_hand=20), "asleep": engine("asleep")})) == "asleep"


def test_a_prefix_draws_a_request_until_the_queue_costs_more() -> None:
    seen = pool({"has": engine(in_hand=1), "idle": engine()})
    assert chosen(seen) == "idle"
    assert chosen(seen, {"has": 0.15, "gone": 9.0}) == "has"


def test_among_equals_chance_decides() -> None:
    seen = pool({name: engine() for name in "abc"})
    counts = Counter(chosen(seen) for _ in range(300))
    assert set(counts) == {"a", "b", "c"}
    assert min(counts.values()) > 50


def test_nothing_known_is_no_choice() -> None:
    assert chosen(PoolView()) is None
    assert chosen(pool({"old": engine()}, heard_s=0.0)) is None
    assert pool({"a": engine()}).least_s("m", NOW_S, but="a") is None


NEAR, OTHER = 1, 2
SECONDS_BY_TIER = {"slots": 0.0, "host": 0.003, "dram": 0.04, "elsewhere": 0.2}


def with_adapter(tier: str, **fields: object) -> EngineNews:
    """An engine that has one adapter there."""
    lists = {name: [NEAR] if name == tier else [] for name in ("slots", "host", "dram")}
    return engine(adapters=AdapterNews(*list(SECONDS_BY_TIER.values())[1:], **lists), **fields)  # type: ignore[arg-type]


def test_the_nearer_an_adapter_the_sooner() -> None:
    seen = pool({tier: with_adapter(tier) for tier in SECONDS_BY_TIER})
    for tier in SECONDS_BY_TIER:
        assert {seen.soonest("m", NOW_S, {}, NEAR) for _ in range(20)} == {tier}
        seen.lose(tier)
    seen = pool({tier: with_adapter(tier) for tier in SECONDS_BY_TIER})
    assert set(seen.best("m", NOW_S, {}, OTHER)) == set(seen.best("m", NOW_S, {})) == set(SECONDS_BY_TIER)


def test_a_queue_weighs_against_an_adapter() -> None:
    busy = {"has": with_adapter("slots", in_hand=1), "idle": with_adapter("elsewhere")}
    assert pool(busy).best("m", NOW_S, {}, NEAR) == ["has"], "0.2 s against 0.3 s"
    busy["has"] = with_adapter("slots", in_hand=3)
    assert pool(busy).best("m", NOW_S, {}, NEAR) == ["idle"], "0.4 s against 0.3 s"
    assert pool(busy).best("m", NOW_S, {"has": 0.2}, NEAR) == ["has"], "and its prefix"


def test_a_hot_adapter_spreads_as_far_as_its_load_asks_for() -> None:
    """One gateway sends without an end; a replica that was sent one is taken to have it from then on."""
    seen = pool({"has": with_adapter("slots")} | {name: with_adapter("elsewhere") for name in "abc"})
    sent = []
    for _ in range(40):
        sent.append(seen.soonest("m", NOW_S, {}, NEAR))
        seen.send(sent[-1], "m", NEAR)
    assert sent[:2] == ["has", "has"]
    assert set(sent) == {"has", *"abc"}
    counts = Counter(sent)
    assert max(counts.values()) - min(counts.values()) <= 2
    # One that is asked for now and then stays where it is.
    seen = pool({"has": with_adapter("slots")} | {name: with_adapter("dram") for name in "abc"})
    assert {seen.soonest("m", NOW_S, {}, NEAR) for _ in range(40)} == {"has"}


def test_what_is_not_told_again_is_gone() -> None:
    seen = pool({"r": with_adapter("slots"), "other": with_adapter("host")})
    seen.send("other", "m", OTHER)
    assert seen.best("m", NOW_S, {"other": 0.1}, OTHER) == ["other"]
    seen.hear(ReplicaNews("pool", "r", {"m": with_adapter("elsewhere")}, [], 8), NOW_S)
    assert seen.best("m", NOW_S, {"other": 0.1}, NEAR) == ["other"]
    seen.hear(ReplicaNews("pool", "other", {"m": with_adapter("elsewhere")}, [], 8), NOW_S)
    assert len(seen.best("m", NOW_S, {}, NEAR)) == len(seen.best("m", NOW_S, {}, OTHER)) == 2
    assert [len(known) for known in seen._adapters.values()] == [0]
    seen.lose("r")
    seen.lose("other")
    assert not seen._adapters


STATES = ("cold", "starting", "awake", "sleeping", "asleep", "waking", "stopping", "failed")
NAMES = st.sampled_from("abcdefghijkl")
MODELS = st.sampled_from("mno")
SECONDS = st.sampled_from((0.0, 0.1, 0.11, 0.3, 2.0, 7.5))
NUMBERS = st.integers(0, 4)
KEYS = st.lists(NUMBERS, max_size=3)
ADAPTERS = st.none() | st.builds(AdapterNews, SECONDS, SECONDS, SECONDS, KEYS, KEYS, KEYS)
ENGINES = st.builds(EngineNews, st.sampled_from(STATES), *[SECONDS] * 4, NUMBERS, NUMBERS, NUMBERS, ADAPTERS)
EVENTS = st.one_of(
    st.builds(ReplicaNews, st.just("pool"), NAMES, st.dictionaries(MODELS, ENGINES), st.lists(MODELS), NUMBERS),
    st.tuples(st.just("send"), NAMES, MODELS, st.none() | NUMBERS),
    st.tuples(st.just("lose engine"), NAMES, MODELS),
    st.tuples(st.just("lose"), NAMES),
    st.tuples(st.just("pass"), SECONDS),
)


@given(st.lists(EVENTS, max_size=40), st.dictionaries(NAMES, SECONDS))
def test_columns_say_what_one_replica_after_another_says(events: list[object], saved_s: dict[str, float]) -> None:
    now_s, seen, plain = NOW_S, PoolView(), dict[str, plain_estimate.ReplicaView]()
    for event in events:
        match event:
            case ReplicaNews():
                seen.hear(event, now_s)
                plain.setdefault(event.replica_id, plain_estimate.ReplicaView.empty()).hear(event, now_s)
            case ("send", name, model, key) if name in plain:
                seen.send(name, model, key)
                plain[name].sent[model] = plain[name].sent.get(model, 0) + 1
                plain[name].expected.setdefault(model, set()).add(key)
            case ("lose engine", name, model):
                seen.lose_engine(name, model)
                if name in plain:
                    plain[name].lose_engine(model)
            case ("lose", name):
                seen.lose(name)
                plain.pop(name, None)
            case ("pass", float(seconds)):
                now_s += seconds
    for model in "mno":
        estimates = {name: plain_estimate.first_token_s(view, model, now_s) for name, view in plain.items()}
        known = {name: each for name, each in estimates.items() if each is not None}
        assert seen.first_tokens_s(model, now_s) == known, "to the last digit"
        for key in (None, 0, 1, 7):
            assert sorted(seen.best(model, now_s, saved_s, key)) == plain_estimate.best(
                plain, model, now_s, saved_s, key
            )
        others = [each for name, each in known.items() if name != "a"]
        assert seen.least_s(model, now_s, but="a") == min(others, default=None)
    assert {name for name in plain if seen.is_silent(name, now_s)} == {
        name for name, view in plain.items() if now_s - view.heard_s > STALE_S
    }
