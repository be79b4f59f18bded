"""``flashserve forecast`` on what a service tells."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app import forecast_cli
from app.cli import cli
from app.errors import RefusedError
from app.forecast_chart import chart_of, drawn

END_S = 1_700_000_100.0


def told(**fields: Any) -> dict[str, Any]:
    return {
        "pool": "default", "engines": {"r": "asleep"}, "measured": 0, "floor": 1, "reason": "expected soon",
        "quiet_s": 12.0, "awake_in_s": 3.0, "awake_for_s": 9.0, "gaps_seen": 20, "service_s": 0.8, "rate_per_s": 0.25,
        "expected_per_s": None, "forecast": None,
        "demand": {"step_s": 10, "end_s": END_S, "requests": [None, 0.0, 40.0, 80.0]},
    } | fields  # fmt: skip


FORECAST = {
    "by": "seasonal level", "made_at_s": END_S - 100, "step_s": 60.0,
    "requests": {"0.1": [0.0, 6.0], "0.5": [60.0, 120.0], "0.9": [90.0, 240.0]},
    "errors": {"seasonal level": {"wape": 0.2, "pinball": 1.5, "coverage": None}},
}  # fmt: skip


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    made: dict[str, Any] = {
        "made_at_s": END_S, "models": {"m": told()}, "problems": {"history": "it is locked"}, "nodes_ahead": [{}],
        "pools": {"default": {"step_s": 10.0, "need": [0, 0, 1, 1, 0], "working": [], "ongoing": 0}},
    }  # fmt: skip
    monkeypatch.setattr(forecast_cli, "get", lambda _url, _path: made)
    return made


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["forecast", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.usefixtures("plan")
def test_all_models_and_pools_with_reasons() -> None:
    text = shown()
    assert "expected soon" in text
    assert "0 now, 1 in 20 s, 0 in 40 s" in text
    assert "it is locked" in text
    assert "room for 1 replicas" in text


def test_json_is_the_plan(plan: dict[str, Any]) -> None:
    assert json.loads(shown("--json")) == plan


@pytest.mark.usefixtures("plan")
def test_a_model_without_a_forecast() -> None:
    text = shown("m")
    assert "its idle times decide" in text
    assert "awake in 3 s for 9 s" in text


def test_a_model_with_a_forecast_and_a_picture(plan: dict[str, Any], tmp_path: Path) -> None:
    plan["models"]["m"] = told(forecast=FORECAST)
    text = shown("m", "--png", str(tmp_path / "chart.png"))
    assert "seasonal level (believed): wape 0.2, pinball 1.5" in text
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_shown_is_said(plan: dict[str, Any], tmp_path: Path) -> None:
    plan["models"]["m"] = told(forecast=FORECAST)
    assert CliRunner().invoke(cli, ["forecast", "--png", "x.png"]).exit_code == 2
    nowhere = CliRunner().invoke(cli, ["forecast", "m", "--png", str(tmp_path / "none" / "x.png")])
    assert isinstance(nowhere.exception, RefusedError)
    plan["models"] = {}
    assert isinstance(CliRunner().invoke(cli, ["forecast", "m"]).exception, RefusedError)


def test_the_chart_has_one_scale_and_one_step() -> None:
    chart = chart_of("m", told(forecast=FORECAST))
    assert chart.came == [None, 0.0, 4.0, 8.0]
    # The second coarse bucket is under way, and is forecast until 20 s from now.
    assert (chart.expected, chart.upper) == ([2.0, 2.0], [4.0, 4.0])
    lines = drawn(chart)
    assert lines[0].endswith("up to 8")
    assert lines[1] == "[blue]   █[/]│[green]  [/]"
    assert lines[-2] == "[blue]· ██[/]│[green]██[/]"


def test_nothing_but_zeros_is_drawn() -> None:
    chart = chart_of("m", told(demand={"step_s": 10, "end_s": END_S, "requests": [0.0, None]}))
    assert "up to 0" in drawn(chart)[0]
