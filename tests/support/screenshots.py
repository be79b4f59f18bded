"""Pictures of a real service for README and guides: the status page, light and dark, Ray's dashboard, the terminal.

Usage: CHROMIUM=/path/to/chromium python tests/support/screenshots.py [--url URL] [--into app/guides/pictures]

Without a URL the demo models are served for two tenants, asked for something, put to sleep and woken first, and asked
for more while the pictures are taken; with one, there is no picture of Ray's dashboard. A service with API keys wants
an administrator's in FLASHSERVE_API_KEY.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
from rich.console import Console
from rich.text import Text

from tests.support.browser import CHROMIUM, tab
from tests.support.ray_head import command
from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, ROOT, Service, demo_args, deployed
from tests.support.tenants import KeysFile

WIDTH, COLUMNS = 1280, 110
UP_TO_DATE = "document.getElementById('connection')?.textContent === 'up to date'"
# For charts that begin when the page is opened.
LOOK_ON_S = 12.0
CLIENTS = 3
# What is typed, and whether the service is asked.
COMMANDS = {
    "status": ("status",),
    "stages": ("status", "--stages"),
    "tenants": ("tenants",),
    "doctor": ("doctor", "serve_config.yaml"),
}
LOCAL = {"doctor"}
TENANTS: dict[str, dict[str, Any]] = {
    "acme": {"models": [CHAT_MODEL], "adapters": ["pirate"], "requests_per_minute": 6000, "weight": 2},
    "globex": {"models": "*", "max_concurrent_requests": 8},
    "root": {"admin": True},
}
RAY_TOKEN_COOKIE = "ray-authentication-token"  # noqa: S105 - its name


def bearer(key: str) -> dict[str, str]:
    """Return the headers that carry a key."""
    return {"Authorization": f"Bearer {key}"}


def use(url: str, key: str) -> None:
    """Give the service something to show."""
    chat = {"model": "pirate", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 32}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", chat), ("/v1/chat/completions", chat | {"model": CHAT_MODEL}),
        ("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "a cat"}), ("/admin/sleep", {"model": CHAT_MODEL}),
        ("/v1/chat/completions", chat), ("/admin/sleep", {"model": EMBEDDING_MODEL}),
    ]  # fmt: skip
    for path, body in asked:
        httpx.post(url + path, json=body, headers=bearer(key), timeout=120).raise_for_status()


@contextmanager
def under_load(url: str, key: str) -> Iterator[None]:
    """Have clients who ask for streams all the time."""
    is_over = threading.Event()

    def ask() -> None:
        body = {"model": CHAT_MODEL, "prompt": "Once upon a time", "max_tokens": 64, "ignore_eos": True, "stream": True}
        while not is_over.is_set():
            httpx.post(f"{url}/v1/completions", json=body, headers=bearer(key), timeout=120).raise_for_status()

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


def terminal(url: str, into: Path, name: str) -> None:
    """Take what a command tells as rich draws it."""
    arguments = [*COMMANDS[name], *([] if name in LOCAL else ["--url", url])]
    surroundings = os.environ | {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
    shown = subprocess.run(
        [command("flashserve"), *arguments], check=True, capture_output=True, text=True, env=surroundings, cwd=ROOT
    ).stdout.replace(str(ROOT), "~/flashserve")
    typed = " ".join(("flashserve", *COMMANDS[name]))
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(f"$ {typed}", Text.from_ansi(shown), sep="\n")
        drawn = console.export_svg(title=typed)
    # Without the fonts that it would fetch from somewhere.
    (into / f"{name}.svg").write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


@contextmanager
def of_its_own() -> Iterator[tuple[Service, str]]:
    """Serve the demo models to tenants; yields a tenant's key too. An administrator's comes into the environment."""
    with tempfile.TemporaryDirectory() as directory:
        file = KeysFile(Path(directory, "keys.yaml"), **TENANTS)
        os.environ["FLASHSERVE_API_KEY"] = file.keys["root"]
        with deployed(demo_args(security={"api_keys_file": str(file.path)})) as service:
            use(service.url, file.keys["root"])
            yield service, file.keys["acme"]


def take(url: str, into: Path) -> None:
    """Take what shows the service itself."""
    asyncio.run(page(url, into))
    for name in COMMANDS:
        terminal(url, into, name)


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--into", type=Path, default=Path("app/guides/pictures"))
    arguments = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("There is no Chromium: install one, or name it in the variable CHROMIUM.")
    arguments.into.mkdir(exist_ok=True)
    if arguments.url is not None:
        take(arguments.url.rstrip("/"), arguments.into)
    else:
        with of_its_own() as (service, key):
            with under_load(service.url, key):
                take(service.url, arguments.into)
            asyncio.run(dashboard(service, arguments.into))
    print(*sorted(map(str, arguments.into.glob("*.[ps][nv]g"))), sep="\n")


if __name__ == "__main__":
    main()
