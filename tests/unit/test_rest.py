"""Where an idle engine rests: held against trying every course."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler import rest
from autoscaler.idle import BINS, EDGES_S, Gaps, bin_of, hazard_per_s
from autoscaler.layers import AWAKE, PROFILES, Layer, Profile
from autoscaler.rest import course

LAYERS = PROFILES["gpu-7b"].layers


def expected_cost(  # noqa: PLR0913, PLR0917 - a case
    plan: tuple[int, ...], hazard: np.ndarray, widths: list[float], burst: float, worth: float, patience_s: float
) -> float:
    """What following ``plan`` (a layer for each bin) costs on average, reckoned forwards."""
    alive, cost, before = 1.0, 0.0, AWAKE
    for layer, rate, width_s in zip(plan, hazard, widths, strict=True):
        if layer < before:
            cost += alive * (LAYERS[before].ready_s - LAYERS[layer].ready_s)
        ends = 1.0 - np.exp(-rate * width_s)
        cost += alive * LAYERS[layer].device_share * (ends / rate if rate else width_s)
        ready_s = LAYERS[layer].ready_s
        felt_s = ready_s / 10 if ready_s < patience_s else patience_s / 10 + ready_s - patience_s
        cost += alive * ends * (felt_s * worth * burst + ready_s)
        alive *= 1.0 - ends
        before = layer
    return cost


@settings(max_examples=60, deadline=None)
@given(
    hazard=st.lists(st.sampled_from([0.0, 1e-3, 0.01, 0.1, 1.0]), min_size=5, max_size=5),
    burst=st.sampled_from([1.0, 7.0]),
    worth=st.sampled_from([0.5, 5.0, 50.0]),
    patience_s=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_no_course_costs_less(hazard: list[float], burst: float, worth: float, patience_s: float) -> None:
    widths = [3.0, 5.0, 9.0, 17.0, 33.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rest, "WIDTHS_S", np.array(widths))
        found = course(np.array(hazard), burst, LAYERS, worth, patience_s)
    layer, followed = AWAKE, []
    for moves in found.moves:
        layer = moves[layer]
        followed.append(layer)
    rates = np.array(hazard)
    least = min(
        expected_cost(plan, rates, widths, burst, worth, patience_s)
        for plan in itertools.product(range(len(LAYERS)), repeat=5)
    )
    assert expected_cost(tuple(followed), rates, widths, burst, worth, patience_s) == pytest.approx(least)


def hazard_of(*gaps_s: float) -> np.ndarray:
    gaps = Gaps.none()
    for gap_s in gaps_s * 20:
        gaps.add(gap_s)
    return hazard_per_s(gaps, None)


def test_before_a_timer_is_due_the_engine_is_started_and_given_up_afterwards() -> None:
    way = course(hazard_of(3600.0), 1.0, PROFILES["gpu-7b-s3"].layers, 20.0)
    due_s = EDGES_S[bin_of(3600.0)]
    assert way.layer_at(1.0, AWAKE) == 1, "it rests at once"
    assert way.next_change_s(1.0, 1) == pytest.approx(due_s - 28.0)
    assert way.layer_at(due_s - 27.0, 1) == AWAKE
    assert way.layer_at(4 * 3600.0, AWAKE) == 1


def test_what_is_asked_for_all_the_time_stays_awake_and_what_never_is_rests() -> None:
    layers = PROFILES["gpu-7b-s3"].layers
    assert course(np.full(BINS, 0.1), 1.0, layers, 20.0).next_change_s(0.0, AWAKE) == np.inf
    assert course(np.zeros(BINS), 1.0, layers, 20.0).layer_at(0.0, AWAKE) == 1


@given(age_s=st.floats(0, 1e6), worth=st.floats(0.1, 100))
def test_dearer_waiting_never_makes_an_engine_rest_colder(age_s: float, worth: float) -> None:
    hazard = np.full(BINS, 0.003)
    colder, warmer = (course(hazard, 1.0, LAYERS, each).layer_at(age_s, AWAKE) for each in (worth, worth * 2))
    assert warmer <= colder


@pytest.mark.parametrize(
    "layers",
    [
        (Layer("asleep", 0.3, 0.0),),
        (Layer("awake", 0.0, 1.0), Layer("dram", 3.0, 0.0), Layer("asleep", 0.3, 0.0)),
        (Layer("awake", 0.0, 1.0), Layer("asleep", 0.3, 0.0), Layer("dram", 3.0, 0.1)),
    ],
)
def test_a_profile_in_the_wrong_order_is_refused(layers: tuple[Layer, ...]) -> None:
    with pytest.raises(ValueError, match="wrong"):
        Profile("wrong", layers, "")


def test_a_wait_that_is_hardly_minded_keeps_nobody_awake() -> None:
    hazard = np.full(BINS, 0.02)
    patient, hasty = (course(hazard, 1.0, LAYERS, 100.0, patience_s).layer_at(5.0, AWAKE) for patience_s in (1.0, 0.0))
    assert (patient, hasty) == (1, AWAKE), "0.6 s of waking weigh a tenth, or whole"


COSTS = st.floats(0.0, 1e6) | st.sampled_from((0.0, 1.0))


@given(
    st.lists(st.tuples(st.tuples(COSTS, COSTS, COSTS), st.floats(0.0, 1.0)), max_size=30),
    st.tuples(st.just(0.0), st.floats(0.0, 10.0), st.floats(0.0, 100.0)),
)
def test_for_three_layers_it_is_the_same_without_loops(
    backwards: list[tuple[tuple[float, float, float], float]], ready_s: tuple[float, float, float]
) -> None:
    assert rest._of_three(backwards, ready_s) == rest.cheapest(backwards, ready_s)


@given(
    st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=BINS, max_size=BINS),
    st.floats(0.0, 1e6),
    st.integers(0, 2),
)
def test_the_next_change_is_the_first_of_all_bins(moves: list[tuple[int, int, int]], age_s: float, layer: int) -> None:
    way = rest.Course(tuple(moves), (0.0, 0.6, 8.0))
    changes = [
        EDGES_S[index] - (way.ready_s[layer] if to[layer] < layer else 0.0)
        for index, to in enumerate(moves)
        if index > bin_of(age_s) and to[layer] != layer
    ]
    assert way.next_change_s(age_s, layer) == min((each for each in changes if each > age_s), default=np.inf)
