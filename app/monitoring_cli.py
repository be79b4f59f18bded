"""``flashserve monitoring``: dashboards and alert rules, to be provisioned in the Grafana and Prometheus beside Ray."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.dashboards import DASHBOARDS, grafana_json
from app.telling import AsJson, tell

console = Console()


def run(
    directory: Annotated[Path, typer.Argument(help="where to write them; made if it is not there")],
    *,
    as_json: AsJson = False,
) -> None:
    """Write the Grafana dashboards, and the alert rules for Prometheus."""
    directory.mkdir(parents=True, exist_ok=True)
    dashboards = [directory / f"{dashboard.id}.json" for dashboard in DASHBOARDS]
    for path, dashboard in zip(dashboards, DASHBOARDS, strict=True):
        path.write_text(json.dumps(grafana_json(dashboard), indent=2) + "\n")
    rules = directory / "flashserve-alerts.yaml"
    rules.write_bytes((files("app") / "alerts.yaml").read_bytes())
    lines = [*map(str, dashboards), f"{rules}, for rule_files of Prometheus"]
    tell(
        {"dashboards": [str(path) for path in dashboards], "rules": str(rules)},
        lambda: console.print("\n".join(lines), highlight=False, soft_wrap=True),
        as_json=as_json,
    )
