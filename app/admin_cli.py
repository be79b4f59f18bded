"""A running service, looked at and told what to do from the command line over HTTP."""

import os
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer
import yaml
from rich.console import Console
from rich.filesize import decimal
from rich.table import Column, Table

from app.errors import ConfigError, RefusedError, ServiceUnreachableError
from app.telling import AsJson, progress_console, tell

console = Console()
model_cli = typer.Typer(no_args_is_help=True, help="add, change and remove models of a running service")

# An administrator's, where the service has keys; no option, so that it stands in no list of processes.
API_KEY_VARIABLE = "FLASHSERVE_API_KEY"
_ID_DIGITS = 12
# Commands wait for requests to end.
_TIMEOUT_S = 300.0
WIDTH = 100
Url = Annotated[str, typer.Option(help="where the service answers", envvar="FLASHSERVE_URL")]
DEFAULT_URL = "http://127.0.0.1:8000"


def status(
    url: Url = DEFAULT_URL,
    *,
    stages: Annotated[bool, typer.Option(help="show how long each part of the last start took")] = False,
    as_json: AsJson = False,
) -> None:
    """Show each model's engine: its state and since when, its requests, how long it takes to start and to wake."""
    told = get(url, "/admin/models")
    tell(told, lambda: _show_engines(told["models"], stages=stages), as_json=as_json)


def _show_engines(engines: dict[str, Any], *, stages: bool = False) -> None:
    columns = ("model", "state", "for", "requests", "memory", "start", "wake", "weights")
    # Wide enough for what is in it, also in a narrow terminal: half a name helps nobody.
    table = Table(
        *(Column(name, no_wrap=True, min_width=len(name)) for name in columns), box=None, padding=(0, 2, 0, 0)
    )
    for model, engine in engines.items():
        took = [f"{engine[key]:.2f} s" if engine[key] is not None else "" for key in ("started_in_s", "woken_in_s")]
        since, weights = f"{engine['since_s']:.0f} s", engine["start"]["weights_from"]
        requests = f"{engine['requests']} + {engine['waiting']} held" if engine["waiting"] else str(engine["requests"])
        held = engine[f"{engine['state']}_bytes"] if engine["state"] in {"awake", "asleep"} else 0
        table.add_row(model, engine["state"], since, requests, decimal(held) if held else "", *took, weights)
    Console(width=max(console.width, WIDTH)).print(table)
    for model, engine in engines.items():
        if engine["reason"]:
            console.print(f"{model}: {engine['reason']}", highlight=False, soft_wrap=True)
        if stages:
            parts = (f"{stage} {seconds:.2f} s" for stage, seconds in engine["start"]["stages_s"].items())
            console.print(f"{model}: {', '.join(parts)}", highlight=False, soft_wrap=True)


def wake(model: str, url: Url = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Wake a model ahead of its next request, also one that failed."""
    _do(f"waking {model} …", "POST", url, "/admin/wake", {"model": model}, as_json=as_json)


def sleep(model: str, url: Url = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Put a model to sleep once its requests have ended."""
    _do(f"waiting for {model} to sleep …", "POST", url, "/admin/sleep", {"model": model}, as_json=as_json)


def stop(model: str, url: Url = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """End a model's engine once its requests have ended; it stays cold until it is asked for."""
    _do(f"waiting for {model} to end …", "POST", url, "/admin/stop", {"model": model}, as_json=as_json)


def _do(  # noqa: PLR0913 - a request, and how it is told of
    doing: str, method: str, url: str, path: str, body: dict[str, Any] | None = None, *, as_json: bool
) -> None:
    """Ask for a change, and tell how engines are after it."""
    with progress_console.status(doing):
        told = _ask(method, url, path, body)
    tell(told, lambda: _show_engines(told["models"]), as_json=as_json)


def migrate(
    model: str,
    url: Url = DEFAULT_URL,
    *,
    replica: Annotated[str | None, typer.Option(help="Serve's id of the replica they leave; the busiest")] = None,
    as_json: AsJson = False,
) -> None:
    """Move a model's running streams to other replicas; their clients don't notice."""
    told = _ask("POST", url, "/admin/migrate", {"model": model, "replica": replica})
    tell(
        told,
        lambda: console.print(f"{told['moving']} streams of {model} are moving", highlight=False),
        as_json=as_json,
    )


@model_cli.command("add")
def add_model(
    file: Annotated[Path, typer.Argument(help="YAML with the model as it would stand under 'models'", exists=True)],
    url: Url = DEFAULT_URL,
    *,
    as_json: AsJson = False,
) -> None:
    """Serve another model, or change the one of that id, without touching the others; restarts don't undo it."""
    try:
        section = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ConfigError((f"{file}: {error}",)) from error
    if not isinstance(section, dict) or not isinstance(section.get("id"), str):
        raise ConfigError((f"{file}: it has to hold one model, with its id",))
    model = section.pop("id")
    _do(f"adding {model} …", "PUT", url, f"/admin/models/{quote(model)}", section, as_json=as_json)


@model_cli.command("rm")
def remove_model(model: str, url: Url = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Serve a model no longer; its requests under way end first."""
    _do(f"removing {model} …", "DELETE", url, f"/admin/models/{quote(model)}", as_json=as_json)


def models(url: Url = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Show what can be asked for by name: models, and adapters with the model that they are of."""
    told = get(url, "/v1/models")
    tell(told, lambda: _show_names(told["data"]), as_json=as_json)


def _show_names(cards: list[dict[str, Any]]) -> None:
    table = _table("name", "adapter of", "longest context")
    for card in cards:
        length = card.get("max_model_len")
        table.add_row(card["id"], card.get("parent") or "", "" if length is None else f"{length} tokens")
    Console(width=max(console.width, WIDTH)).print(table)


def _table(*columns: str) -> Table:
    return Table(*(Column(name, no_wrap=True) for name in columns), box=None, padding=(0, 2, 0, 0))


def adapters(url: Url = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Show each adapter: its model, whose it is, where it comes from, its version, and its state."""
    told = get(url, "/admin/adapters")
    tell(told, lambda: _show_adapters(told["adapters"]), as_json=as_json)


def _show_adapters(told: list[dict[str, Any]]) -> None:
    columns = ("adapter", "owner", "state", "rank", "size", "version", "source")
    table = Table(*(Column(name, no_wrap=name != "source") for name in columns), box=None, padding=(0, 2, 0, 0))
    for each in told:
        size = "" if each["size_bytes"] is None else decimal(each["size_bytes"])
        known = str(each["rank"] or ""), size, (each["digest"] or "")[:_ID_DIGITS]
        table.add_row(f"{each['model']}:{each['id']}", each["owner"] or "", each["state"], *known, each["source"])
    Console(width=max(console.width, WIDTH)).print(table)
    for each in told:
        if each["reason"]:
            name = f"{each['model']}:{each['id']}"
            console.print(f"{name}: {each['reason']}", highlight=False, markup=False, soft_wrap=True)


def tenants(url: Url = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Show who has API keys and what is left of their limits, as the gateway that answers counts."""
    told = get(url, "/admin/tenants")
    tell(told, lambda: _show_tenants(told), as_json=as_json)


def _show_tenants(told: dict[str, Any]) -> None:
    table = _table("tenant", "weight", "requests in hand", "requests left", "tokens left")
    for name, tenant in told["tenants"].items():
        left = ["" if tenant[key] is None else str(tenant[key]) for key in ("requests_left", "tokens_left")]
        role = " (admin)" if tenant["admin"] else ""
        table.add_row(f"{name}{role}", f"{tenant['weight']:g}", str(tenant["requests_in_hand"]), *left)
    console.print(table)
    if told["problem"]:
        console.print(f"The file is not read: {told['problem']}", highlight=False, markup=False, soft_wrap=True)


def tiers(url: Url = DEFAULT_URL, *, as_json: AsJson = False) -> None:
    """Show what each node's tiers hold, who uses it, and how full they are."""
    told = get(url, "/admin/tiers")
    tell(told, lambda: _show_tiers(told["nodes"]), as_json=as_json)


def _show_tiers(nodes: dict[str, Any]) -> None:
    for node, held in nodes.items():
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


def get(url: str, path: str) -> dict[str, Any]:
    """Return what the service answers. Raises ServiceUnreachableError, RefusedError."""
    return _ask("GET", url, path)


def _ask(method: str, url: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    key = os.environ.get(API_KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else None
    try:
        answer = httpx.request(method, url.rstrip("/") + path, json=body, headers=headers, timeout=_TIMEOUT_S)
        if answer.is_error:
            raise RefusedError(str(answer.json()["error"]["message"]))
        return answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServiceUnreachableError(url, str(error)) from error
