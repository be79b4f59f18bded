"""``flashserve history``: what forecasts are made from, taken over from existing logs, and renamed with a model."""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.snapshot_cli import DEFAULT_DIRECTORY, Directory
from app.telling import AsJson, tell
from autoscaler.history import RETENTION_S, History, Pushed, history_file
from autoscaler.log_import import counts_from_csv, counts_from_prometheus

cli = typer.Typer(no_args_is_help=True, help="Import and rename what was asked for in the past.")
console = Console()
DAY_S = 86400


@cli.command("import")
def import_log(
    log: Annotated[Path, typer.Argument(help="CSV with a request a line (.gz too), or a range query's .json")],
    *,
    series: Annotated[str | None, typer.Option(help="the model, where the log doesn't name it")] = None,
    begin_s: Annotated[float, typer.Option(help="Unix time that is added to the CSV's seconds")] = 0.0,
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Add an existing log to the arrival history; the same file twice counts once."""
    if log.suffix == ".json":
        counts = counts_from_prometheus(log, series=series)
    else:
        counts = counts_from_csv(log, series=series, begin_s=begin_s)
    digest = hashlib.sha256(log.read_bytes()).hexdigest()
    with History(history_file(directory.expanduser().resolve())) as history:
        pushed = history.import_log(counts, time.time(), source=f"import:{digest}")
    models = len({count.series for count in counts})
    tell(asdict(pushed) | {"models": models}, lambda: _show(log, pushed, models), as_json=as_json)


def _show(log: Path, pushed: Pushed, models: int) -> None:
    if pushed.duplicate:
        console.print(f"{log} was imported before", highlight=False)
        return
    console.print(f"{pushed.kept} seconds with requests for {models} models were imported", highlight=False)
    if pushed.too_old:
        days = max(RETENTION_S.values()) // DAY_S
        console.print(f"{pushed.too_old} are older than {days} days and were left out", highlight=False)
    if pushed.from_the_future:
        console.print(f"{pushed.from_the_future} are in the future and were left out", highlight=False)


@cli.command()
def rename(
    old: Annotated[str, typer.Argument(help="a model, or model:adapter")],
    new: Annotated[str, typer.Argument(help="what it is called from now on")],
    directory: Directory = DEFAULT_DIRECTORY,
    *,
    as_json: AsJson = False,
) -> None:
    """Let a model that was renamed keep its past."""
    with History(history_file(directory.expanduser().resolve())) as history:
        if old not in history.series():
            raise typer.BadParameter(f"nothing was ever asked of '{old}'")
        history.rename(old, new)
    tell(
        {"old": old, "new": new},
        lambda: console.print(f"the past of {old} is that of {new}", highlight=False),
        as_json=as_json,
    )
