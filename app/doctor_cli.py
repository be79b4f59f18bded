"""``flashserve doctor``: what is wrong with this machine, or could be, and how to mend each."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.doctor import Finding, findings, is_broken
from app.telling import FAILED, AsJson, tell

console = Console()
_MARKS = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "broken": "[red]broken[/] "}


def run(
    config_file: Annotated[Path, typer.Argument(help="Serve config file that is to be served here")] = Path(
        "serve_config.yaml"
    ),
    *,
    as_json: AsJson = False,
) -> None:
    """Check this machine for a config file, and say how to mend what is wrong; status 1 if something is broken."""
    from app.doctor_facts import facts_of  # noqa: PLC0415 - keeps --help quick

    found = findings(facts_of(config_file))
    tell([asdict(finding) for finding in found], lambda: _show(found), as_json=as_json)
    if is_broken(found):
        raise typer.Exit(FAILED)


def _show(found: list[Finding]) -> None:
    for finding in found:
        _show_one(finding)


def _show_one(finding: Finding) -> None:
    console.print(_MARKS[finding.level], end=" ")
    console.print(f"{finding.check}: {finding.message}", highlight=False, markup=False, soft_wrap=True)
    if finding.mend:
        console.print(f"        {finding.mend}", highlight=False, markup=False, soft_wrap=True)
