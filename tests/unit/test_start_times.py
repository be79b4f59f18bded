"""How long a start would take, by where the snapshot is."""

import pytest

from deployments.start_times import StartTimes, one_after_the_other


def test_before_any_measurement_there_is_a_guess() -> None:
    times = StartTimes(10.0)
    assert (times.seconds("dram"), times.latest_s("dram")) == (10.0, None)


def test_each_tier_has_its_own_time_and_the_latest_counts_most() -> None:
    times = StartTimes(10.0)
    times.measured("dram", 2.0)
    times.measured("remote", 30.0)
    times.measured("dram", 3.0)
    assert times.seconds("dram") == pytest.approx(2.5)
    assert times.latest_s("remote") == 30.0


@pytest.mark.parametrize(
    ("measured", "asked", "expected_s"),
    [
        ({"dram": 1.0, "remote": 9.0}, "disk", 9.0),
        ({"checkpoint": 20.0}, "dram", 20.0),
        ({"dram": 1.0, "disk": 3.0}, "remote", 3.0),
        ({"remote": 9.0, "checkpoint": 20.0}, "disk", 9.0),
        ({"dram": 1.0}, "somewhere else", 1.0),
    ],
)
def test_an_unmeasured_tier_takes_as_long_as_the_next_slower_one(
    measured: dict[str, float], asked: str, expected_s: float
) -> None:
    times = StartTimes(10.0)
    for tier, seconds in measured.items():
        times.measured(tier, seconds)
    assert times.seconds(asked) == expected_s


def test_stages_that_come_one_after_the_other() -> None:
    assert one_after_the_other({"fork": 2.0, "load": 3.0}, 1.0) == {"fork": 1.0, "load": 3.0}
