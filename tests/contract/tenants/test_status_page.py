"""The status page at a whole gateway: it loads without a key and by itself; what it shows needs an administrator's."""

import re
from html.parser import HTMLParser

import pytest

from app.ui_routes import UI_PATHS
from tests.support.gateway_with_tenants import ACME, SHARED, ask, request
from tests.support.gateways import SNAPSHOT, InProcess
from tests.support.tenants import KeysFile

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(attribute)) is not None]


async def page(service: InProcess) -> Page:
    return Page((await request(service, "GET", "/ui", None)).text)


@pytest.mark.parametrize("path", sorted(UI_PATHS))
async def test_it_loads_without_a_key_and_from_nowhere_else(service: InProcess, path: str) -> None:
    answer = await request(service, "GET", path, None)
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert set(re.findall(r"\w+:", policy)) == {"data:"}, "no other host"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Type"].startswith("text/")
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)
    assert "shared-model" not in answer.text


async def test_what_it_refers_to_is_there(service: InProcess) -> None:
    found = await page(service)
    referred = {each for each in found.all("href") + found.all("src") if not each.startswith(("#", "data:"))}
    assert {f"/{each}" for each in referred} | {"/ui"} == UI_PATHS
    ids = found.all("id")
    assert len(ids) == len(set(ids))
    labelled = (
        found.all("aria-labelledby") + found.all("for") + [each[1:] for each in found.all("href") if each[0] == "#"]
    )
    assert set(labelled) <= set(ids)
    script = (await request(service, "GET", "/ui/page.js", None)).text
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= set(ids)


async def test_it_can_be_read_aloud_and_used_by_keyboard(service: InProcess) -> None:
    found = await page(service)
    tags = [tag for tag, _ in found.tags]
    assert tags.count("h1") == tags.count("main") == 1
    assert dict(found.tags)["html"]["lang"] == "en"
    inputs = [attrs["id"] for tag, attrs in found.tags if tag in {"input", "select"}]
    assert set(inputs) <= set(found.all("for"))
    assert all(attrs.get("scope") == "col" for tag, attrs in found.tags if tag == "th")
    assert not [attrs for _, attrs in found.tags if any(name.startswith("on") or name == "style" for name in attrs)]
    style = (await request(service, "GET", "/ui/style.css", None)).text
    assert "prefers-color-scheme: dark" in style
    assert ":focus-visible" in style


async def test_data_never_becomes_markup(service: InProcess) -> None:
    script = (await request(service, "GET", "/ui/page.js", None)).text
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "localStorage"):
        assert way not in script


async def test_its_data_is_for_administrators(service: InProcess, file: KeysFile) -> None:
    assert (await request(service, "GET", "/admin/status", None)).status_code == 401
    assert (await request(service, "GET", "/admin/status", file.keys[ACME])).status_code == 403
    await ask(service, "completions", SHARED, file.keys[ACME])
    status = (await request(service, "GET", "/admin/status", file.keys["root"])).json()
    engine = status["models"][SHARED]
    assert (engine["state"], engine["requests"], engine["waiting"]) == ("awake", 0, 0)
    assert engine["recent"][-1]["kind"] in {"start", "wake"}
    assert engine["recent"][-1]["took_s"] > 0
    (node,) = status["nodes"].values()
    assert node["dram"]["snapshots"] == [SNAPSHOT]
    # There is no forecaster here: that takes nothing from the rest.
    assert status["plan"] is None
    assert "autoscaling" in status["problems"]["plan"]
