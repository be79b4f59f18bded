"""``flashserve plan``: what the forecaster has told replicas and Serve to do, and why.

What it expects, and how well it did, is ``flashserve forecast``.
"""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from app.admin_cli import DEFAULT_URL, WIDTH, Url, get
from app.forecast_cli import replicas, seconds, show_beside
from app.telling import AsJson, tell

console = Console()


def run(url: Url = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Show which engines and replicas are planned, and why."""
    plan = get(url, "/admin/plan")
    tell(plan, lambda: _show(plan), as_json=as_json)


def _show(plan: dict[str, Any]) -> None:
    shown = Console(width=max(console.width, WIDTH))
    age_s = plan["age_s"]
    shown.print("There is no plan yet." if age_s is None else f"made {age_s:.0f} s ago", highlight=False)
    shown.print(_table(plan.get("models", {})))
    for pool, each in plan.get("pools", {}).items():
        shown.print(f"pool {pool}: {replicas(each)}", highlight=False)
    show_beside(shown, plan)


def _table(models: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("model", no_wrap=True)
    for heading in ("awake now", "planned", "awake in", "for"):
        table.add_column(heading, justify="right")
    table.add_column("why")
    for model, told in models.items():
        awake = sum(state == "awake" for state in told["engines"].values())
        times = seconds(told["awake_in_s"]), seconds(told["awake_for_s"])
        table.add_row(model, str(awake), str(told["floor"]), *times, told["reason"])
    return table
