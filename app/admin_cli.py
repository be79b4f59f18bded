"""``flashserve status`` and ``flashserve tiers``: a running service, looked at from the command line over HTTP."""

import time
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from app.errors import ServiceUnreachableError

console = Console()

_ID_DIGITS = 12
_TIMEOUT_S = 30.0
Url = Annotated[str, typer.Option(help="where the service answers", envvar="FLASHSERVE_URL")]
DEFAULT_URL = "http://127.0.0.1:8000"


def status(url: Url = DEFAULT_URL) -> None:
    """Show each model's engine: its state, what for, and how it started."""
    table = Table("model", "state", "requests", "restarts", "start", "weights from", "stages")
    for model, engine in _get(url, "/admin/models")["models"].items():
        start = engine["start"]
        state = f"{engine['state']} ({engine['reason']})" if engine["reason"] else engine["state"]
        took = f"{engine['started_in_s']:.2f} s" if engine["started_in_s"] is not None else ""
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in start["stages_s"].items())
        counts = (str(engine["requests"]), str(engine["restarts"]))
        table.add_row(model, state, *counts, took, start["weights_from"], stages)
    console.print(table)


def tiers(url: Url = DEFAULT_URL) -> None:
    """Show what each node's tiers hold, who uses it, and how full they are."""
    for node, held in _get(url, "/admin/tiers")["nodes"].items():
        table = Table("tier", "snapshot", "model", "size", "in use by", "uses", "last used", title=f"node {node}")
        for name, tier in held.items():
            if name == "error":
                table.add_row("", "", tier)
                continue
            of = f"{decimal(tier['used_bytes'])} of {decimal(tier['capacity_bytes'])}"
            table.add_row(name, "", "", of, style="bold")
            for snapshot in tier["snapshots"]:
                table.add_row(*_row(snapshot))
        console.print(table)


def _row(snapshot: dict[str, Any]) -> tuple[str, ...]:
    notes = "" if snapshot["whole"] else " (being copied)"
    pinned = " (pinned)" if snapshot["pinned"] else ""
    used = f"{time.time() - snapshot['last_used_s']:.0f} s ago" if snapshot["last_used_s"] else ""
    size = decimal(snapshot["size_bytes"])
    leases = "\n".join(snapshot["leases"])
    return "", snapshot["id"][:_ID_DIGITS] + pinned, snapshot["name"] + notes, size, leases, str(snapshot["uses"]), used


def _get(url: str, path: str) -> dict[str, Any]:
    try:
        answer = httpx.get(url.rstrip("/") + path, timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServiceUnreachableError(url, str(error)) from error
