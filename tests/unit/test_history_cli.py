"""``flashserve history``: logs become arrival history."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli import cli
from autoscaler.errors import ImportFormatError
from autoscaler.history import History, history_file


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


def said(directory: Path, *arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["history", *arguments, "--dir", str(directory)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def counted(directory: Path, model: str) -> float:
    now_s = time.time()
    with History(history_file(directory)) as history:
        return float(np.nansum(history.read([model], 60, now_s - 86400, now_s).counts))


def test_a_csv_is_imported_once(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    begin_s = time.time() - 7200
    log.write_text("\n".join(["timestamp,model", *(f"{10 * index},m{index % 2}" for index in range(100))]))
    arguments = ["import", str(log), "--begin-s", str(begin_s)]
    assert "100 seconds with requests for 2 models" in said(directory, *arguments)
    assert "imported before" in said(directory, *arguments)
    assert counted(directory, "m0") == 50


def test_prometheus_is_imported(directory: Path, tmp_path: Path) -> None:
    now_s = time.time()
    values = [[now_s - 600, "5"], [now_s - 300, "12"], [now_s + 1e6, "20"]]
    log = tmp_path / "range.json"
    log.write_text(json.dumps({"data": {"result": [{"metric": {"model_name": "m"}, "values": values}]}}))
    assert "1 are in the future" in said(directory, "import", str(log))
    assert counted(directory, "m") == 7


def test_nothing_of_a_bad_log_is_kept(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("timestamp,model\n1,m\nsoon,m\n")
    with pytest.raises(ImportFormatError, match="line 3"):
        said(directory, "import", str(log))
    assert not history_file(directory).exists()


def test_a_renamed_model_keeps_its_past(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(f"timestamp,model\n{time.time() - 500},old\n")
    said(directory, "import", str(log))
    said(directory, "rename", "old", "new")
    assert (counted(directory, "old"), counted(directory, "new")) == (0, 1)
    assert "nothing was ever asked" in said(directory, "rename", "old", "new")
