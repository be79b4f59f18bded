"""Traces become arrivals, or an error."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from autoscaler.errors import TraceError
from autoscaler.traces import Service, read_trace


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_a_request_log_gives_times_and_what_requests_take(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv.gz", "timestamp_s,model_id,exec_time_s\n5,b,2\n1,a,7\n3,b,\n")
    trace = read_trace(path, Service(fixed_s=9.0))
    assert {name: (each.at_s.tolist(), each.service_s.tolist()) for name, each in trace.items()} == {
        "a": ([1.0], [7.0]),
        "b": ([3.0, 5.0], [9.0, 2.0]),
    }


def test_tokens_take_their_time(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "timestamp_s,context_tokens,generated_tokens\n0,8000,50\n")
    assert read_trace(path)["all"].service_s.tolist() == pytest.approx([2.0])


def test_counts_a_window_are_spread_over_it_always_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "model,client,window_start_s,requests,iat_cv\nm,1,0,40,3.0\nm,1,600,2,0.5\n")
    one, other = (read_trace(path)["m/1"].at_s for _ in range(2))
    assert np.array_equal(one, other)
    assert np.histogram(one, [0, 600, 1200])[0].tolist() == [40, 2]


def test_a_table_of_minutes_has_a_series_a_column(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "minute,f,g\n480,2,0\n481,0,1\n")
    trace = read_trace(path)
    assert (trace["f"].at_s < 60).all()
    assert 60 <= trace["g"].at_s[0] < 120
    assert list(read_trace(path, thin=2)) == ["f"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "timestamp_s\nsoon\n", "timestamp_s\nnan\n", "timestamp_s\n"])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError):
        read_trace(write(tmp_path / "t.csv", text))
