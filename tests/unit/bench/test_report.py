import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report import Report, Result, Target, current_commit, median_interval, median_result, print_report, write_report
from rich.console import Console

MACHINE = {"cpu": "a processor", "cores": 2, "memory_bytes": 8 * 2**30, "os": "an OS", "gpu": "no GPU"}


def report_of(*results: Result) -> Report:
    return Report("example", MACHINE, "abc1234", results, ("a note",))


def test_the_interval_is_the_second_and_the_second_last_of_nine() -> None:
    # P(Binomial(9, 1/2) <= 1) = 10/512 on either side, so these two cover the median with 96.1 %.
    assert median_interval([9, 1, 8, 2, 7, 3, 6, 4, 5]) == (2.0, 8.0)


def test_six_samples_give_their_range_and_five_give_none() -> None:
    assert median_interval([3, 1, 2, 6, 5, 4]) == (1.0, 6.0)
    assert median_interval([3, 1, 2, 5, 4]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=40))
def test_the_interval_contains_the_median_and_consists_of_samples(samples: list[float]) -> None:
    low, high = median_interval(samples)
    assert low <= np.median(samples) <= high
    assert {low, high} <= set(samples)


def test_the_interval_covers_the_true_median_at_least_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    intervals = [median_interval(random.lognormal(size=11)) for _ in range(1000)]
    covered = sum(low <= 1.0 <= high for low, high in intervals)
    # 95 % of 1000, less three standard deviations.
    assert covered >= 929


@pytest.mark.parametrize(
    ("direction", "measured", "met"),
    [("min", 0.98, True), ("min", 0.97, True), ("min", 0.96, False), ("max", 0.96, True), ("max", 0.98, False)],
)
def test_a_target_is_met_in_its_direction(direction: str, measured: float, met: bool) -> None:  # noqa: FBT001
    assert Target(0.97, direction).met_by(measured) is met


def test_more_than_excludes_a_tie() -> None:
    assert not Target(1.0, "min", strict=True).met_by(1.0)
    assert Target(1.0, "min", strict=True).met_by(1.001)


def test_the_file_holds_every_field(tmp_path: Path) -> None:
    with_target = median_result("ratio", [0.9, 1.0, 1.1], "ratio", Target(0.97, "min"), "stock vLLM")
    path = write_report(report_of(with_target, median_result("latency", [5.0], "ms")), tmp_path / "new")
    assert path == tmp_path / "new" / "example.json"
    written = json.loads(path.read_text())
    assert (written["name"], written["machine"], written["commit"]) == ("example", MACHINE, "abc1234")
    assert written["results"] == [
        {
            "name": "ratio",
            "value": 1.0,
            "unit": "ratio",
            "target": 0.97,
            "direction": "min",
            "met": True,
            "compared_with": "stock vLLM",
            "interval_95": None,
            "samples": [0.9, 1.0, 1.1],
        },
        {
            "name": "latency",
            "value": 5.0,
            "unit": "ms",
            "target": None,
            "direction": None,
            "met": None,
            "compared_with": None,
            "interval_95": None,
            "samples": [5.0],
        },
    ]


def test_a_value_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(report_of(Result("broken", float("nan"), "ms", ())), tmp_path)


def test_the_table_shows_values_targets_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    missed = median_result("throughput", [0.5], "ratio", Target(0.97, "min"), "stock vLLM")
    print_report(report_of(missed), Console(width=200))
    printed = capsys.readouterr().out
    for expected in ("throughput", "0.5", "≥ 0.97", "MISSED", "stock vLLM", "no GPU", "8 GiB", "a note"):
        assert expected in printed


def test_outside_a_repository_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert current_commit() == "unknown"
