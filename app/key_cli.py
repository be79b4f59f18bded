"""``flashserve key``: makes API keys. Nothing is written anywhere: whoever runs it puts the line into the file."""

import re
from typing import Annotated

import typer
from rich.console import Console

from app.api_keys import hashed, key_id, new_key
from app.errors import ConfigError
from app.telling import AsJson, tell
from app.tenants import TENANT_NAME

key_cli = typer.Typer(no_args_is_help=True, help="make API keys")
console = Console()


@key_cli.command("new")
def new(
    tenant: Annotated[str, typer.Argument(help="name of the tenant it is for")], *, as_json: AsJson = False
) -> None:
    """Make a key; print it, which nothing does again, and the line with its hash for security.api_keys_file."""
    if re.fullmatch(TENANT_NAME, tenant) is None:
        raise ConfigError((f"'{tenant}' is no name for a tenant: up to 64 letters, digits, '-', '_' and '.'",))
    key = new_key()
    entry = {"id": key_id(key), "hash": hashed(key)}
    text = (
        f"The key of {tenant}, shown only now:\n\n  {key}\n\n"
        f"For security.api_keys_file, among the keys of {tenant}:\n\n"
        f"  - {{id: {entry['id']}, hash: '{entry['hash']}'}}"
    )
    tell(
        {"tenant": tenant, "key": key, "entry": entry},
        lambda: console.print(text, highlight=False, markup=False, soft_wrap=True),
        as_json=as_json,
    )
