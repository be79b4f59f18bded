"""Eviction: the budget holds, leases and pins are safe, the least useful goes first."""

from hypothesis import given
from hypothesis import strategies as st

from storage.cache import Kept, make_room, worth_per_byte

NOW_S = 1000.0


def kept(snapshot_id: str, **fields: object) -> Kept:
    defaults = {
        "size_bytes": 10, "leases": 0, "pinned": False, "uses": 1, "since_s": 0.0, "last_used_s": 0.0, "saved_s": 1.0,
    }  # fmt: skip
    return Kept(snapshot_id=snapshot_id, **(defaults | fields))  # type: ignore[arg-type]


def test_free_room_costs_nobody_anything() -> None:
    assert make_room([kept("a")], 10, 20, NOW_S).evict == ()


def test_the_least_waiting_saved_per_byte_goes_first() -> None:
    held = [kept("often", uses=9), kept("rare"), kept("slow-to-fetch", saved_s=50.0)]
    assert make_room(held, 10, 30, NOW_S).evict == ("rare",)


def test_a_forecast_counts_more_than_the_past() -> None:
    held = [kept("was-busy", uses=99, rate_per_s=0.0), kept("will-be-busy", uses=0, rate_per_s=5.0)]
    assert make_room(held, 10, 20, NOW_S).evict == ("was-busy",)


def test_between_equals_the_one_unused_for_longest_goes() -> None:
    assert make_room([kept("b", last_used_s=5.0), kept("a", last_used_s=9.0)], 10, 20, NOW_S).evict == ("b",)


def test_no_small_one_leaves_in_vain() -> None:
    held = [kept("small", size_bytes=1, uses=0), kept("large", size_bytes=100)]
    assert make_room(held, 50, 101, NOW_S).evict == ("large",)


def test_nothing_is_evicted_for_what_will_not_fit() -> None:
    held = [kept("leased", leases=1), kept("pinned", pinned=True), kept("idle")]
    room = make_room(held, 15, 30, NOW_S)
    assert not room.fits
    assert room.evict == ()
    assert room.reason == "20 of 30 bytes are leased or pinned"


snapshots = st.lists(
    st.builds(
        Kept,
        snapshot_id=st.uuids().map(str),
        size_bytes=st.integers(0, 100),
        leases=st.integers(0, 2),
        pinned=st.booleans(),
        uses=st.integers(0, 50),
        since_s=st.floats(0, NOW_S),
        last_used_s=st.floats(0, NOW_S),
        saved_s=st.floats(0, 100),
        rate_per_s=st.none() | st.floats(0, 10),
    ),
    max_size=12,
    unique_by=lambda snapshot: snapshot.snapshot_id,
)


@given(snapshots, st.integers(0, 300), st.integers(0, 600))
def test_budgets_hold_and_leases_are_safe(held: list[Kept], needed_bytes: int, spare_bytes: int) -> None:
    capacity_bytes = sum(snapshot.size_bytes for snapshot in held) + spare_bytes
    room = make_room(held, needed_bytes, capacity_bytes, NOW_S)
    by_id = {snapshot.snapshot_id: snapshot for snapshot in held}
    evicted = [by_id[snapshot_id] for snapshot_id in room.evict]
    assert not any(snapshot.leases or snapshot.pinned for snapshot in evicted)
    left_bytes = capacity_bytes - spare_bytes - sum(snapshot.size_bytes for snapshot in evicted)
    if room.fits:
        assert left_bytes + needed_bytes <= capacity_bytes
        # And no more than needed: each of them is.
        assert all(left_bytes + snapshot.size_bytes + needed_bytes > capacity_bytes for snapshot in evicted)
    else:
        assert room.evict == ()
        held_bytes = sum(snapshot.size_bytes for snapshot in held if snapshot.leases or snapshot.pinned)
        assert held_bytes + needed_bytes > capacity_bytes


@given(snapshots.filter(bool))
def test_worth_is_never_negative(held: list[Kept]) -> None:
    assert all(worth_per_byte(snapshot, NOW_S) >= 0 for snapshot in held)
