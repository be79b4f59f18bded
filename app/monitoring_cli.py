"""``flashserve monitoring``: dashboards and alert rules, to be provisioned in the Grafana and Prometheus beside Ray."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.dashboards import DASHBOARDS, grafana_json

console = Console()


def run(directory: Annotated[Path, typer.Argument(help="where to write them; made if it is not there")]) -> None:
    """Write the Grafana dashboards, and the alert rules for Prometheus."""
    directory.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        path = directory / f"{dashboard.id}.json"
        path.write_text(json.dumps(grafana_json(dashboard), indent=2) + "\n")
        console.print(str(path), highlight=False, soft_wrap=True)
    rules = directory / "flashserve-alerts.yaml"
    rules.write_bytes((files("app") / "alerts.yaml").read_bytes())
    console.print(f"{rules}, for rule_files of Prometheus", highlight=False, soft_wrap=True)
