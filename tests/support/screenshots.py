"""Pictures of a real service for the README: the status page, light and dark, Ray's dashboard, and the terminal.

Usage: CHROMIUM=/path/to/chromium python tests/support/screenshots.py [--url URL] [--into app/guides/pictures]

Without a URL the demo models are served, asked for something, put to sleep and woken first, and asked for more while
the pictures are taken; with one, there is no picture of Ray's dashboard. A service with API keys wants an
administrator's in FLASHSERVE_API_KEY.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
CLIENTS = 3
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


@contextmanager
def under_load(url: str) -> Iterator[None]:
    """Have clients who ask for streams all the time."""
    is_over = threading.Event()

    def ask() -> None:
        body = {"model": CHAT_MODEL, "prompt": "Once upon a time", "max_tokens": 64, "ignore_eos": True, "stream": True}
        while not is_over.is_set():
            httpx.post(f"{url}/v1/completions", json=body, timeout=120).raise_for_status()

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        is_over.set()
        for client in clients:
            client.join()


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
            await opened.until("document.body?.innerText.includes('Engines-default')")
            await asyncio.sleep(LOOK_ON_S)
            await opened.picture(into / "ray-dashboard.png", whole=False)


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
        drawn = console.export_svg(title="flashserve status")
    # Without the fonts that it would fetch from somewhere.
    (into / "status.svg").write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--into", type=Path, default=Path("app/guides/pictures"))
    arguments = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("There is no Chromium: install one, or name it in the variable CHROMIUM.")
    arguments.into.mkdir(exist_ok=True)
    with deployed(demo_args()) if arguments.url is None else nullcontext() as service:
        url = arguments.url or service.url
        if service is not None:
            use(url)
        with nullcontext() if service is None else under_load(url):
            asyncio.run(page(url.rstrip("/"), arguments.into))
            terminal(url, arguments.into)
        if service is not None:
            asyncio.run(dashboard(service, arguments.into))
    print(*sorted(map(str, arguments.into.glob("*.[ps][nv]g"))), sep="\n")


if __name__ == "__main__":
    main()
