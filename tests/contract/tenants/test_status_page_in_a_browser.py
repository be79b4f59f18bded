"""The status page in headless Chromium, where there is one: its key, its data, both schemes, a phone and a screen."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import browser
from tests.support.browser import Tab
from tests.support.gateway_with_tenants import ACME, SHARED, VECTORS, ask
from tests.support.gateways import InProcess
from tests.support.tenants import KeysFile

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        browser.CHROMIUM is None, reason="there is no Chromium here; the variable CHROMIUM may name one"
    ),
]
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
UP_TO_DATE = "document.getElementById('connection')?.textContent === 'up to date'"
WIDEST = "document.scrollingElement.scrollWidth"


async def plan(model: str | None) -> dict[str, Any]:
    """Stands for the forecaster, which takes a Ray cluster."""
    now_s = time.time()
    rates = [float(each % 7) for each in range(12)]
    forecast = {
        "by": "season",
        "made_at_s": now_s,
        "step_s": 300,
        "requests": {"0.5": rates, "0.9": [each + 2 for each in rates]},
    }
    demand = {"step_s": 10, "end_s": now_s, "requests": [None, *map(float, range(59))]}
    told = {"reason": HOSTILE, "forecast": forecast} | ({} if model is None else {"demand": demand})
    pools = {"default": {"need": [1, 2, 2], "step_s": 10}}
    return {"made_at_s": now_s, "models": {model or SHARED: told}, "pools": pools, "replicas": {"one": "default"}}


@pytest_asyncio.fixture(loop_scope="module")
async def page(service: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tab]:
    monkeypatch.setattr(service.gateway._gateway, "plan", plan)
    async with browser.tab(tmp_path) as opened:
        await opened.do("Page.navigate", url=f"http://127.0.0.1:{service.port}/ui")
        yield opened


async def log_in(page: Tab, key: str) -> None:
    await page.until("document.activeElement?.id === 'key'")
    await page.do("Input.insertText", text=key)
    await page.press("Enter")


async def test_it_asks_for_a_key_keeps_it_in_the_tab_and_shows_the_service(
    service: InProcess, file: KeysFile, page: Tab
) -> None:
    await ask(service, "chat", SHARED, file.keys[ACME])
    await log_in(page, "wrong")
    await page.until("document.getElementById('connection')?.textContent.includes('not valid')")
    await log_in(page, file.keys[ACME])
    await page.until("document.getElementById('connection')?.textContent.includes('administrator')")
    # What the door refuses is an entry in the browser's log too.
    refusals, page.complaints = page.complaints, []
    assert all("401" in each or "403" in each for each in refusals)
    await log_in(page, file.keys["root"])
    await page.until(UP_TO_DATE)
    text = await page.eval("document.body.innerText")
    for words in (
        SHARED,
        VECTORS,
        "awake",
        "moved here",
        "Streams that are moving",
        "dram: 270.0 MB of 4.0 GB",
        "pinned",
        "start",
        "up to 5.80 requests a second",
    ):
        assert words in text, words
    assert HOSTILE in text, "as text"
    assert await page.eval("document.title") == "FlashServe"
    assert await page.eval("document.querySelectorAll('img, main script').length") == 0
    assert await page.eval("localStorage.length") == 0
    # It goes on by itself, and with what is open.
    await page.eval("document.querySelector('#starts summary').click()")
    await page.eval("window.before = document.querySelector('#time svg')")
    await page.until("document.querySelector('#time svg') !== window.before")
    assert await page.eval("document.querySelector('#starts details').open")
    await page.do("Page.reload")
    await page.until(f"window.before === undefined && {UP_TO_DATE}")
    for width in (390, 1280):
        for dark in (False, True):
            await page.size(width, dark=dark)
            assert await page.eval(WIDEST) <= width
            background = await page.eval("getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
            if pictures := os.environ.get("PICTURES"):
                await page.picture(Path(pictures, f"status-page-{width}-{'dark' if dark else 'light'}.png"))
    assert await page.eval("getComputedStyle(document.querySelector('td')).display") == "table-cell"
    assert page.complaints == [], "nothing is refused by the policy, and nothing is thrown"


async def test_the_keyboard_reaches_everything_that_can_be_done(file: KeysFile, page: Tab) -> None:
    await log_in(page, file.keys["root"])
    await page.until(UP_TO_DATE)
    await page.eval("document.activeElement.blur()")
    reached = []
    for _ in range(await page.eval("document.querySelectorAll('a, summary, select').length") + 1):
        await page.press("Tab")
        reached.append(await page.eval("document.activeElement.tagName"))
    assert {"A", "SUMMARY", "SELECT"} <= set(reached)
    outline = await page.eval("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid" or reached[-1] == "BODY"
