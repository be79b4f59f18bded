"""How every command tells what it has found: as JSON for programs, in words and tables for people.

Covers: the option ``--json`` and the statuses that commands end with. What goes on meanwhile is told on standard error,
so that standard output holds the answer and nothing else.
"""

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="print JSON, and nothing else, on standard output")]

# 0 is what Unix means by it, and 2 what typer says of a command that is wrongly written.
FAILED = 1
UNREACHABLE = 3

# For what goes on meanwhile.
progress_console = Console(stderr=True)


def tell(found: Any, show: Callable[[], None], *, as_json: bool) -> None:
    """Print ``found`` as JSON, or have it shown."""
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show()
