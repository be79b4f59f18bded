"""Logs of others become counts, or an error that says where."""

import gzip
import json
from pathlib import Path

import pytest

from autoscaler.errors import ImportFormatError
from autoscaler.log_import import counts_from_csv, counts_from_prometheus
from autoscaler.types import Count


def test_requests_of_a_second_are_counted_together(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(b"timestamp_s,model,generated_tokens\n0.1,a,5\n0.9,a,7\n1.0,a,\n0.5,b,1\n"))
    assert counts_from_csv(path, begin_s=100) == [Count("a", 100, 2, 12), Count("a", 101, 1), Count("b", 100, 1, 1)]


def test_times_may_be_iso(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("time\n2023-11-14T22:13:20Z\n2023-11-14T23:13:20.5+01:00\n")
    assert counts_from_csv(path, series="m") == [Count("m", 1_700_000_000, 2)]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("when,model\n1,a\n", "line 1"),
        ("time,model\n1,a\nsoon,a\n", "line 3"),
        ("time,model\n2023-11-14T22:13:20,a\n", "line 2"),
        ("time,model\nnan,a\n", "line 2"),
        ("time,model\n1,\n", "line 2"),
        ("time\n1\n", "line 1"),
        ("", "line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ImportFormatError) as caught:
        counts_from_csv(path)
    assert caught.value.place == place


def export(*values: object, **labels: str) -> str:
    return json.dumps({"status": "success", "data": {"result": [{"metric": labels, "values": list(values)}]}})


def test_a_counter_becomes_increases_and_restarts_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "range.json"
    path.write_text(export([60, "10"], [120, "15"], [180, "15"], [240, "3"], model_name="m"))
    assert counts_from_prometheus(path) == [Count("m", 120, 5), Count("m", 240, 3)]


@pytest.mark.parametrize("text", ["", "{}", "[]", export([60, "x"], model="m"), export([60], model="m"), export()])
def test_what_is_no_range_export_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "range.json"
    path.write_text(text)
    with pytest.raises(ImportFormatError):
        counts_from_prometheus(path)
