"""Pictures of a real service for the README: the status page, light and dark, Ray's dashboard, and the terminal.

Usage: CHROMIUM=/path/to/chromium python tests/support/screenshots.py [--url URL] [--into app/guides]

Without a URL the demo models are served, asked for something, put to sleep and woken first; with one, there is no
picture of Ray's dashboard. A service with API keys wants an administrator's in FLASHSERVE_API_KEY.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
from rich.console import Console
from rich.text import Text

from tests.support.browser import CHROMIUM, tab
from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, Service, command, demo_args, deployed

WIDTH, COLUMNS = 1280, 110
UP_TO_DATE = "document.getElementById('connection')?.textContent === 'up to date'"
# For charts that begin when the page is opened.
LOOK_ON_S = 12.0
RAY_TOKEN_COOKIE = "ray-authentication-token"  # noqa: S105 - its name


def use(url: str) -> None:
    """Give the service something to show."""
    chat = {"model": "pirate", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 32}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", chat), ("/v1/chat/completions", chat | {"model": CHAT_MODEL}),
        ("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "a cat"}), ("/admin/sleep", {"model": CHAT_MODEL}),
        ("/v1/chat/completions", chat), ("/admin/sleep", {"model": EMBEDDING_MODEL}),
    ]  # fmt: skip
    for path, body in asked:
        httpx.post(url + path, json=body, timeout=120).raise_for_status()


async def page(url: str, into: Path) -> None:
    """Take the status page, light and dark."""
    with tempfile.TemporaryDirectory() as profile:
        async with tab(Path(profile)) as opened:
            await opened.size(WIDTH)
            await opened.do("Page.navigate", url=f"{url}/ui")
            if key := os.environ.get("FLASHSERVE_API_KEY"):
                await opened.until("document.getElementById('key-form')?.hidden === false")
                await opened.eval(f"sessionStorage.setItem('flashserve-key', {key!r}), location.reload()")
            await opened.until(UP_TO_DATE)
            await asyncio.sleep(LOOK_ON_S)
            await opened.eval("document.querySelector('details')?.setAttribute('open', '')")
            for dark in (False, True):
                await opened.size(WIDTH, dark=dark)
                await opened.picture(into / f"ui-{'dark' if dark else 'light'}.png")


async def dashboard(service: Service, into: Path) -> None:
    """Take the page of Ray's dashboard on what Serve runs."""
    with tempfile.TemporaryDirectory() as profile:
        async with tab(Path(profile)) as opened:
            await opened.size(WIDTH)
            token = service.environment["RAY_AUTH_TOKEN"]
            await opened.do("Network.setCookie", name=RAY_TOKEN_COOKIE, value=token, url=service.dashboard)
            await opened.do("Page.navigate", url=f"{service.dashboard}/#/serve")
            await opened.until("document.body.innerText.includes('Engines-default')")
            await asyncio.sleep(LOOK_ON_S)
            await opened.picture(into / "ray-dashboard.png")


def terminal(url: str, into: Path) -> None:
    """Take `flashserve status` as rich draws it."""
    arguments = ["status", "--url", url]
    surroundings = os.environ | {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
    shown = subprocess.run(
        [command("flashserve"), *arguments], check=True, capture_output=True, text=True, env=surroundings
    ).stdout
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print("$ flashserve status", Text.from_ansi(shown), sep="\n")
        console.save_svg(str(into / "status.svg"), title="flashserve status")


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--into", type=Path, default=Path("app/guides"))
    arguments = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("There is no Chromium: install one, or name it in the variable CHROMIUM.")
    with deployed(demo_args()) if arguments.url is None else nullcontext() as service:
        url = arguments.url or service.url
        if service is not None:
            use(url)
            asyncio.run(dashboard(service, arguments.into))
        asyncio.run(page(url.rstrip("/"), arguments.into))
        terminal(url, arguments.into)
    print(*sorted(map(str, arguments.into.glob("*.[ps][nv]g"))), sep="\n")


if __name__ == "__main__":
    main()
