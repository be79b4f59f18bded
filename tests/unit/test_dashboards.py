"""Dashboards and alert rules: they ask for what there is; with promtool, they are also seen to fire."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.dashboards import DASHBOARDS, grafana_json
from tests.support.declared_metrics import documented
from tests.support.promql import labels_in, labels_in_text, metrics_in
from tests.support.ray_head import command
from tests.support.service import ROOT

LABELS = {f"ray_{metric.name}": metric.labels for metric in documented()}
TYPES = {f"ray_{metric.name}": metric.type for metric in documented()}
RAYS = {"NodeAddress"}
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "app" / "alerts.yaml").read_text())["groups"][0]["rules"]
QUERIES = [
    pytest.param(expression, legend, id=f"{dashboard.id}: {panel.title}: {index}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
    for index, (expression, legend) in enumerate(panel.queries)
]
PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool; the variable PROMTOOL may name one")


def check(expression: str, text: str) -> None:
    metrics = metrics_in(expression)
    assert metrics
    assert metrics <= LABELS.keys()
    known = frozenset[str]().union(*(LABELS[name] for name in metrics))
    assert labels_in(expression) - {"le"} <= known | RAYS
    assert labels_in_text(text) <= labels_in(expression) | RAYS
    for name in metrics:
        if TYPES[name] == "counter":
            assert f"rate({name}" in expression or f"increase({name}" in expression
        is_histogram = f"{name}_bucket" in expression or f"{name}_count" in expression
        assert is_histogram == (TYPES[name] == "histogram")


@pytest.mark.parametrize(("expression", "legend"), QUERIES)
def test_a_panel_asks_for_what_there_is(expression: str, legend: str) -> None:
    check(expression, legend)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    check(rule["expr"], "".join(rule["annotations"].values()))
    assert rule["labels"]["severity"] in {"page", "warn", "info"}
    assert set(rule["annotations"]) == {"summary", "mend"}


def test_the_check_itself_finds_what_is_wrong() -> None:
    for expression in (
        "rate(ray_flashserve_made_up_total[5m])",
        'rate(ray_flashserve_requests_total{modle="m"}[5m])',
        "sum by (colour) (rate(ray_flashserve_requests_total[5m]))",
        "ray_flashserve_requests_total",
        "rate(ray_flashserve_wake_seconds[5m])",
    ):
        with pytest.raises(AssertionError):
            check(expression, "")


def test_every_metric_is_in_some_panel_but_those_that_say_the_same() -> None:
    asked = set().union(*(metrics_in(query.values[0]) for query in QUERIES))  # type: ignore[arg-type]
    left = {"ray_flashserve_device_transfers_total", "ray_flashserve_adapter_unloads_total"}
    assert LABELS.keys() - asked == left


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.id)
def test_a_dashboard_has_panels_beside_each_other(dashboard: Any) -> None:
    made = json.loads(json.dumps(grafana_json(dashboard)))
    cells: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        taken = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells
        assert max(x for x, _ in taken) < 24
        cells |= taken
    assert len({panel["title"] for panel in made["panels"]}) == len(made["panels"])


def test_the_command_writes_them_all(tmp_path: Path) -> None:
    done = subprocess.run(
        [command("flashserve"), "monitoring", str(tmp_path / "new")], check=True, capture_output=True, text=True
    )
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {f"{dashboard.id}.json" for dashboard in DASHBOARDS} | {"flashserve-alerts.yaml"}
    assert all(name in done.stdout.replace("\n", "") for name in written)
    assert len({json.loads(path.read_text())["uid"] for path in (tmp_path / "new").glob("*.json")}) == len(DASHBOARDS)


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    rules = ROOT / "app" / "alerts.yaml"
    assert PROMTOOL is not None
    subprocess.run([PROMTOOL, "check", "rules", str(rules)], check=True)
    tests = ROOT / "tests" / "data" / "alerts_test.yaml"
    done = subprocess.run([PROMTOOL, "test", "rules", str(tests)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = tests.read_text()
    assert [rule["alert"] for rule in RULES if rule["alert"] not in tested] == []
