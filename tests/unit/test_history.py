"""The arrival history: what is kept, what is refused, what survives."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler import history as module
from autoscaler.errors import HistoryError
from autoscaler.history import DAY_S, RETENTION_S, History, Pushed
from autoscaler.types import Count

NOW_S = 1_700_000_000


@pytest.fixture
def history(tmp_path: Path) -> History:
    with History(tmp_path / "arrivals.sqlite") as opened:
        yield opened


def push_each_second(history: History, requests: list[int], begin_s: int = NOW_S, series: str = "m") -> None:
    for second, count in enumerate(requests):
        at_s = begin_s + second
        history.push([Count(series, at_s, count)] if count else [], at_s)


@settings(max_examples=25, deadline=None)
@given(requests=st.lists(st.integers(0, 9), min_size=1, max_size=150))
def test_every_resolution_holds_the_same_requests(
    tmp_path_factory: pytest.TempPathFactory, requests: list[int]
) -> None:
    with History(tmp_path_factory.mktemp("h") / "a.sqlite") as history:
        push_each_second(history, requests)
        end_s = NOW_S + 1200
        for bucket_s in (*RETENTION_S, 5, 30, 300):
            past = history.read(["m"], bucket_s, NOW_S - NOW_S % 600, end_s)
            assert np.nansum(past.counts) == sum(requests)
            assert past.end_s <= end_s


def test_requests_for_adapters_are_their_models_too(history: History) -> None:
    counts = [Count("m", NOW_S, 1, 0), Count("m:one", NOW_S, 2, 0), Count("m:acme/two", NOW_S, 3, 0)]
    history.push(counts, NOW_S + 1)
    found = history.read(["m", "m:one", "n"], 1, NOW_S, NOW_S + 1).counts
    assert found.tolist() == [[6], [2], [0]]


def test_seconds_are_kept_in_order(history: History) -> None:
    push_each_second(history, [3, 0, 1, 2])
    assert history.read(["m"], 1, NOW_S, NOW_S + 4).counts.tolist() == [[3, 0, 1, 2]]


def test_time_that_nobody_counted_is_not_zero(history: History) -> None:
    push_each_second(history, [1])
    push_each_second(history, [0, 2], NOW_S + 3)
    counts = history.read(["m", "unknown"], 1, NOW_S, NOW_S + 5).counts
    assert np.array_equal(counts, [[1, np.nan, np.nan, 0, 2], [0, np.nan, np.nan, 0, 0]], equal_nan=True)


def test_a_push_that_comes_twice_counts_once(history: History) -> None:
    counts = [Count("m", NOW_S, 5, 70)]
    assert history.push(counts, NOW_S, source="gateway-1", number=1) == Pushed(1)
    assert history.push(counts, NOW_S, source="gateway-1", number=1) == Pushed(0, duplicate=True)
    assert history.push(counts, NOW_S, source="gateway-2", number=1) == Pushed(1)
    assert history.read(["m"], 1, NOW_S, NOW_S + 1).counts.tolist() == [[10]]


def test_late_counts_go_where_they_belong_and_impossible_ones_are_told(history: History) -> None:
    late, ancient, future = (Count("m", NOW_S + shift, 1) for shift in (-7200, -500 * DAY_S, 3600))
    assert history.push([late, ancient, future], NOW_S) == Pushed(1, too_old=1, from_the_future=1)
    assert np.nansum(history.read(["m"], 60, NOW_S - 7260, NOW_S + 60).counts) == 1
    assert np.nansum(history.read(["m"], 1, NOW_S - 7260, NOW_S + 60).counts) == 0, "seconds are kept for an hour only"


def test_it_stays_bounded(tmp_path: Path) -> None:
    with History(tmp_path / "a.sqlite", max_series=3) as history:
        for day in range(20):
            at_s = NOW_S + day * DAY_S
            history.push([Count(f"m{day % 5}", at_s, 1)], at_s)
        history.prune(NOW_S + 19 * DAY_S)
        assert history.series() == ("m4", "m3", "m2")
        database = sqlite3.connect(tmp_path / "a.sqlite")
        per_resolution = Counter(bucket_s for (bucket_s,) in database.execute("SELECT bucket_s FROM counts"))
        database.close()
        assert per_resolution == {600: 12, 60: 9, 10: 2, 1: 1}


def test_a_renamed_series_keeps_its_past(history: History) -> None:
    history.push([Count("old", NOW_S, 2), Count("new", NOW_S, 1)], NOW_S)
    history.rename("old", "new")
    assert history.series() == ("new",)
    assert history.read(["new"], 1, NOW_S, NOW_S + 1).counts.tolist() == [[3]]
    history.push([Count("old", NOW_S, 4)], NOW_S)
    assert history.read(["old"], 1, NOW_S, NOW_S + 1).counts.tolist() == [[4]]


def test_restarts_keep_it(tmp_path: Path) -> None:
    for restart in range(3):
        with History(tmp_path / "a.sqlite") as history:
            assert history.set_aside is None
            push_each_second(history, [1], NOW_S + restart)
    with History(tmp_path / "a.sqlite") as history:
        assert history.read(["m"], 1, NOW_S, NOW_S + 3).counts.tolist() == [[1, 1, 1]]


WRITER = """
import sys
from pathlib import Path
from autoscaler.history import History
from autoscaler.types import Count
history = History(Path(sys.argv[1]))
for second in range(1_000_000):
    history.push([Count(f"m{i}", 1_700_000_000 + second, 1) for i in range(20)], 1_700_000_000 + second)
    print(second, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_had_returned_for(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == 50:
            os.kill(writer.pid, signal.SIGKILL)
            break
    told = 50 + sum(1 for _ in writer.stdout)
    writer.wait()
    with History(path) as history:
        assert history.set_aside is None
        counts = history.read([f"m{i}" for i in range(20)], 1, NOW_S, NOW_S + told + 1).counts
        assert np.nansum(counts) == 20 * (told + 1)
        later = history.read([f"m{i}" for i in range(20)], 1, NOW_S + told + 1, NOW_S + told + 100).counts
        assert np.nansum(later) in (0, 20), "a push is there whole or not at all"


def test_a_corrupt_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    with History(path) as history:
        assert history.set_aside == tmp_path / "a.sqlite.corrupt-1"
        push_each_second(history, [1])
    with History(path) as history:
        assert history.set_aside is None
        assert history.series() == ("m",)


def test_a_locked_file_is_an_error_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0.01)
    path = tmp_path / "a.sqlite"
    with History(path) as history:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryError, match="locked"):
            history.push([Count("m", NOW_S, 1)], NOW_S, source="g", number=1)
        other.close()
        assert history.push([Count("m", NOW_S, 1)], NOW_S, source="g", number=1) == Pushed(1)
        assert history.read(["m"], 1, NOW_S, NOW_S + 1).counts.tolist() == [[1]]


def test_a_full_disk_is_an_error_and_the_past_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with History(path) as history:
        history.push([Count("m", NOW_S, 1)], NOW_S)
        history._database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(HistoryError, match="full"):
            history.push([Count(f"series {i}", NOW_S, 1) for i in range(5000)], NOW_S + 1)
        assert history.series() == ("m",)
        history._database.execute("PRAGMA max_page_count = 100000")
        assert history.push([Count("n", NOW_S, 1)], NOW_S + 1) == Pushed(1)


def test_an_imported_log_covers_its_whole_span(history: History) -> None:
    history.import_log([Count("m", NOW_S, 1), Count("m", NOW_S + 3600, 1)], NOW_S + 3600)
    counts = history.read(["m"], 600, NOW_S - NOW_S % 600, NOW_S + 3600).counts
    assert np.isfinite(counts).all()
    assert counts.sum() == 1


def test_ten_thousand_series(history: History) -> None:
    history.push([Count(f"m{i}", NOW_S, 1) for i in range(10_000)], NOW_S)
    past = history.read([f"m{i}" for i in range(10_000)], 10, NOW_S - 300, NOW_S + 10)
    assert np.nansum(past.counts) == 10_000
