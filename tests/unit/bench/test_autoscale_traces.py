"""Which traces the bench replays, and how they are made small enough without losing their bursts."""

from pathlib import Path

import autoscale_traces
import numpy as np
import pytest
from autoscale_traces import SAMPLES, thinned, traces_in

from autoscaler.traces import Arrivals


def arrivals(number: int) -> Arrivals:
    return Arrivals(np.arange(number, dtype=float), np.ones(number))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoscale_traces, "MOST_OF_SERIES", 50)
    monkeypatch.setattr(autoscale_traces, "MOST_REQUESTS", 100)


def test_series_are_left_out_whole() -> None:
    whole = {f"s{number}": arrivals(40) for number in range(6)}
    trace, every, of_one = thinned(whole)
    assert (list(trace), every, of_one) == (["s0", "s3"], 3, 1)
    assert all(len(each.at_s) == 40 for each in trace.values())


def test_one_long_series_loses_requests() -> None:
    trace, _, of_one = thinned({"all": arrivals(250)})
    assert of_one == 3
    assert trace["all"].at_s.tolist() == list(range(0, 250, 3))


def test_files_without_arrivals_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "day.csv").write_text("timestamp_s,model_id\n1,a\n2,b\n")
    (tmp_path / "day_meta.csv").write_text("timestamp_s,model_id\n1,a\n")
    (tmp_path / "other.csv").write_text("name,bytes\nx,1\n")
    assert [name for name, _, _ in traces_in(tmp_path)] == ["day"]
    assert "other.csv is left out" in capsys.readouterr().out


def test_the_samples_are_there_with_their_licences() -> None:
    names = sorted(path.name.split(".")[0] for path in SAMPLES.glob("*.csv.gz"))
    said = (SAMPLES / "README.md").read_text()
    assert names
    assert all(f"`{name}`" in said for name in names)
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) < 1_000_000
