"""``flashserve forecast``: what the running service expects of each model, what it plans, and why."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from app.admin_cli import DEFAULT_URL, WIDTH, Url, get
from app.errors import RefusedError
from app.forecast_chart import Chart, chart_of, drawn, save
from app.telling import AsJson, tell

console = Console()


def run(
    model: Annotated[
        str | None, typer.Argument(help="draw this model's demand and forecast; default: list all")
    ] = None,
    url: Url = DEFAULT_URL,
    *,
    png: Annotated[Path | None, typer.Option(help="write the model's chart to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is expected of each model, what is planned, and why."""
    if png is not None and model is None:
        raise typer.BadParameter("name the model whose chart is to be written", param_hint="--png")
    plan = get(url, "/admin/plan" if model is None else f"/admin/plan?model={quote(model)}")
    chart = None
    if model is not None:
        told = plan["models"]
        if not told:
            raise RefusedError(f"The forecaster has not heard of `{model}` yet.")
        chart = chart_of(*next(iter(told.items())))
        if png is not None:
            save(chart, png)
    tell(plan, lambda: _show(plan, chart), as_json=as_json)


def _show(plan: dict[str, Any], chart: Chart | None) -> None:
    shown = Console(width=max(console.width, WIDTH))
    if chart is not None:
        _show_model(shown, chart, next(iter(plan["models"].values())))
    else:
        shown.print(table(plan))
        for pool, each in plan.get("pools", {}).items():
            shown.print(f"pool {pool}: {replicas(each)}", highlight=False)
    show_beside(shown, plan)


def show_beside(shown: Console, plan: dict[str, Any]) -> None:
    """Show what is wrong with the forecaster, and what was asked of Ray's autoscaler."""
    for what, problem in plan["problems"].items():
        shown.print(f"[yellow]{what}[/]: {problem}", highlight=False, soft_wrap=True)
    if plan["nodes_ahead"]:
        shown.print(f"asked of Ray's autoscaler: room for {len(plan['nodes_ahead'])} replicas", highlight=False)


def table(plan: dict[str, Any]) -> Table:
    """Return all models of a plan as a table."""
    shown = Table(box=box.SIMPLE)
    shown.add_column("model", no_wrap=True)
    for heading in ("requests/s", "expected", "by", "engines for load", "planned", "awake in", "for"):
        shown.add_column(heading, justify="right")
    shown.add_column("why")
    for model, told in plan.get("models", {}).items():
        expected, forecast = told["expected_per_s"], told["forecast"] or {}
        shown.add_row(
            model,
            f"{told['rate_per_s']:.3f}",
            "" if expected is None else f"{expected:.3f}",
            forecast.get("by") or "",
            str(told["measured"]),
            str(told["floor"]),
            seconds(told["awake_in_s"]),
            seconds(told["awake_for_s"]),
            told["reason"],
        )
    return shown


def replicas(pool: dict[str, Any]) -> str:
    """Return in a sentence how many replicas a pool needs when."""
    need, step_s = pool["need"], pool["step_s"]
    changes = (step for step in range(1, len(need)) if need[step] != need[step - 1])
    later = (f", {need[step]} in {step * step_s:.0f} s" for step in changes)
    return f"replicas needed: {need[0]} now{''.join(later)}"


def _show_model(shown: Console, chart: Chart, told: dict[str, Any]) -> None:
    for line in drawn(chart):
        shown.print(line, highlight=False)
    quiet = f"quiet for {told['quiet_s']:.0f} s; " if told["quiet_s"] is not None else ""
    if told["awake_in_s"] is not None:
        quiet += f"awake in {seconds(told['awake_in_s'])} for {seconds(told['awake_for_s'])}; "
    shown.print(f"{quiet}{told['reason']}; {told['gaps_seen']} gaps seen", highlight=False)
    for forecaster, errors in (told["forecast"] or {}).get("errors", {}).items():
        mark = " (believed)" if forecaster == told["forecast"]["by"] else ""
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in errors.items() if value is not None)
        shown.print(f"{forecaster}{mark}: {numbers}", highlight=False)


def seconds(length_s: float | None) -> str:
    """Return a length of time in whole seconds; nothing for None."""
    return "" if length_s is None else f"{length_s:.0f} s"
