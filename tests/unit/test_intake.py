"""Counts come in once, and survive a history that can't be used for a while."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from autoscaler import intake as intake_module
from autoscaler.errors import ReportError
from autoscaler.history import History
from autoscaler.intake import Intake, Push
from autoscaler.reports import read_counts
from autoscaler.types import Count

NOW_S = 1_700_000_000.0


def push(number: int, source: str = "g", since_s: float | None = None) -> Push:
    at_s = NOW_S + number
    return Push(source, number, (Count("m", at_s, 1, 5),), at_s + 1, at_s if since_s is None else since_s)


def total(intake: Intake) -> float:
    return float(np.nansum(intake.read(["m"], 1, NOW_S - 100, NOW_S + 1000).counts))


def test_each_push_counts_once(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "history.db")
    assert [intake.take(push(number)) for number in (1, 1, 2, 1, 3)] == [True, False, True, False, True]
    assert intake.take(push(1, "another"))
    intake.write(NOW_S)
    assert total(intake) == 4


def test_a_push_that_comes_again_to_the_next_process_counts_once(tmp_path: Path) -> None:
    for _ in range(2):
        intake = Intake(tmp_path / "history.db")
        assert intake.take(push(1))
        intake.write(NOW_S)
        assert total(intake) == 1
        intake.close()


def test_a_locked_history_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoscaler.history.LOCK_WAIT_S", 0.01)
    intake = Intake(tmp_path / "history.db")
    intake.take(push(1))
    intake.write(NOW_S)
    other = sqlite3.connect(tmp_path / "history.db")
    other.execute("BEGIN EXCLUSIVE")
    for number in range(2, 10):
        intake.take(push(number))
        intake.write(NOW_S)
        assert intake.problem is not None
        assert "locked" in intake.problem
    other.rollback()
    intake.write(NOW_S)
    assert intake.problem is None
    assert total(intake) == 9


def test_a_history_that_breaks_is_moved_aside_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    intake = Intake(file)
    intake.take(push(1))
    intake.write(NOW_S)
    intake.close()
    file.write_bytes(b"no database " * 1000)
    for number in (2, 3):
        intake.take(push(number))
        intake.write(NOW_S)
    assert intake.problem is None
    assert total(intake) == 2
    assert [each for each in tmp_path.iterdir() if each.name != file.name and not each.name.startswith("history.db-")]


def test_too_many_that_wait_are_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "MAX_BACKLOG", 5)
    intake = Intake(tmp_path)
    for number in range(8):
        intake.take(push(number))
    intake.write(NOW_S)
    assert intake.problem is not None, "a directory is no history"
    assert intake.dropped == 3


def test_what_was_counted_in_an_outage_is_covered(tmp_path: Path) -> None:
    with History(tmp_path / "history.db") as history:
        history.push([Count("m", NOW_S, 1)], NOW_S + 20, since_s=NOW_S)
        counts = history.read(["m"], 1, NOW_S - 5, NOW_S + 20).counts[0]
    assert np.isnan(counts[:5]).all(), "nobody counted before"
    assert counts[5:].tolist() == [1.0] + [0.0] * 19


@pytest.mark.parametrize(
    "rows",
    [None, "x", [["m", 1.0, 1]], [["m", 1.0, -1, 0]], [["", 1.0, 1, 0]], [["m", 1.0, 10**30, 0]], [["m", "x", 1, 0]]],
)
def test_nonsense_is_refused_whole(rows: object) -> None:
    with pytest.raises(ReportError):
        read_counts(rows)
