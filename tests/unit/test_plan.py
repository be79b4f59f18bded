"""What is made ready when there isn't room for all."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.plan import Plan, Room, Wish, Wrong, plan


def wish(name: str, saved: float, devices: float = 1.0, host_bytes: int = 0) -> Wish:
    return Wish("wake", name, saved, 1.0, 1.0, devices, host_bytes)


wishes = st.lists(
    st.builds(
        wish,
        name=st.uuids().map(str),
        saved=st.floats(0, 10),
        devices=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        host_bytes=st.integers(0, 100),
    ),
    max_size=8,
)
rooms = st.builds(Room, devices=st.sampled_from([0.0, 1.0, 3.0]), host_bytes=st.integers(0, 250))


@given(wishes=wishes, room=rooms)
def test_the_room_is_never_exceeded_and_every_wish_is_answered(wishes: list[Wish], room: Room) -> None:
    made = plan(wishes, [], room)
    assert sum(each.device_share for each in made.go) <= room.devices
    assert sum(each.host_bytes for each in made.go) <= room.host_bytes
    assert {each.name for each in made.go + made.passed_over} == {each.name for each in wishes}


@given(wishes=wishes, room=rooms)
def test_what_was_passed_over_does_not_fit_beside_the_rest(wishes: list[Wish], room: Room) -> None:
    made = plan(wishes, [], room)
    for other in made.passed_over:
        fits = (
            sum(each.device_share for each in made.go) + other.device_share <= room.devices
            and sum(each.host_bytes for each in made.go) + other.host_bytes <= room.host_bytes
        )
        assert not fits or other.saved_per_s == 0


@given(saved=st.lists(st.floats(0.1, 10), min_size=1, max_size=6), devices=st.integers(1, 4))
def test_of_equal_engines_those_that_save_most_are_chosen(saved: list[float], devices: int) -> None:
    equal = [wish(f"m{index}", value) for index, value in enumerate(saved)]
    made = plan(equal, [], Room(devices, 0))
    best = max(sum(each) for each in itertools.combinations(saved, min(devices, len(saved))))
    assert sum(each.saved_per_s for each in made.go) == pytest.approx(best)


def test_what_is_no_longer_wished_for_is_cancelled_with_the_reason() -> None:
    made = plan([wish("a", 5.0), wish("b", 1.0)], ["b", "gone"], Room(1.0, 0))
    assert [each.name for each in made.go] == ["a"]
    assert made.cancel == {"b": "others save more waiting in the room there is", "gone": "no longer expected"}


def test_nothing_wished_is_an_empty_plan() -> None:
    assert plan([], [], Room(1.0, 1)) == Plan()


def test_what_was_wrong_is_counted() -> None:
    wrong = Wrong()
    wrong.ended(wish("a", 1.0, host_bytes=10), used=True, held_s=5.0)
    wrong.ended(wish("b", 1.0, devices=0.5, host_bytes=10), used=False, held_s=4.0)
    assert wrong == Wrong(number=1, device_s=2.0, byte_s=40.0, right=1)
