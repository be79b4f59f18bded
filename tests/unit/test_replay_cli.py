"""``flashserve replay`` on a small trace."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from autoscaler.policies import POLICIES


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    rows = [f"{at_s},m{at_s % 3},2" for at_s in range(0, 6000, 50)]
    path.write_text("\n".join(["timestamp_s,model_id,exec_time_s", *rows]))
    return path


def test_every_policy_and_the_bound_are_told(trace: Path) -> None:
    result = CliRunner().invoke(cli, ["replay", str(trace), "--json", "--profile", "gpu-7b-s3"])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert set(told) == {*POLICIES, "clairvoyant"}
    assert told["clairvoyant"]["within_1s"] == 1.0
    assert all(each["unused_device_s"] >= 0 for each in told.values())


def test_on_two_processors_it_comes_to_the_same(trace: Path) -> None:
    arguments = ["replay", str(trace), "--json", "--policy", "ours", "--policy", "serve", "--jobs"]
    one, two = (json.loads(CliRunner().invoke(cli, [*arguments, jobs]).stdout) for jobs in ("1", "2"))
    assert one.keys() == two.keys()
    for name, told in one.items():
        assert two[name] == pytest.approx(told), name


def test_a_table_is_printed(trace: Path) -> None:
    result = CliRunner().invoke(cli, ["replay", str(trace), "--policy", "ours"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "clairvoyant" in result.stdout


@pytest.mark.parametrize("arguments", [["--policy", "best"], ["--profile", "abacus"]])
def test_an_unknown_name_is_refused(trace: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["replay", str(trace), *arguments])
    assert result.exit_code == 2
    assert "there are" in result.output
