"""What tenants may use at a whole gateway: told, counted as usage says, and given back by whoever leaves."""

import asyncio
import json
from typing import Any

import pytest

from app.routes import PATHS
from tests.support.gateway_with_tenants import (
    ACME,
    BODIES,
    SHARED,
    VECTORS,
    ask,
    error_of,
    headers,
    request,
)
from tests.support.gateways import InProcess, PacedEngine
from tests.support.tenants import KeysFile
from tests.support.waiting import until_it_returns

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_limits_are_told_and_kept(service: InProcess, file: KeysFile) -> None:
    key = file.keys["limited"]
    answers = [await ask(service, "completions", SHARED, key) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:5]] == list("43210")
    assert answers[0].headers["x-ratelimit-limit-requests"] == "5"
    refused = answers[-1]
    assert 1 <= int(refused.headers["Retry-After"]) <= 12
    assert error_of(refused)["type"] == "RateLimitError"
    # Others' limits are their own, and theirs stay untouched.
    assert (await ask(service, "completions", SHARED, file.keys[ACME])).status_code == 200
    by_handle = await service.gateway.call("chat", BODIES["chat"] | {"model": SHARED}, key)
    assert by_handle["error"]["code"] == 429
    told = (await request(service, "GET", "/admin/tenants", file.keys["root"])).json()["tenants"]["limited"]
    used = sum(answer.json()["usage"]["total_tokens"] for answer in answers[:5])
    assert 1000 - used <= told["tokens_left"] < 1000 - used + 200, "a minute brings a thousand"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("operation", "changes"),
    [
        ("chat", {}),
        ("chat", {"n": 3}),
        ("completions", {"prompt": ["one two", "three four five"], "echo": True}),
        ("embeddings", {}),
    ],
)
async def test_what_is_counted_is_what_usage_says(
    service: InProcess, file: KeysFile, operation: str, changes: dict[str, Any], *, stream: bool
) -> None:
    spent: list[int] = []
    door, name = service.gateway._door, VECTORS if operation == "embeddings" else SHARED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "_spend", lambda tenant, tokens: spent.append(tokens * (tenant.name == ACME)))
        if stream and operation != "embeddings":
            options = {"stream": True, "stream_options": {"include_usage": True}}
            answer = await ask(service, operation, name, file.keys[ACME], **changes, **options)
            last = [line for line in answer.text.splitlines() if line.startswith("data: {")][-1]
            usage = json.loads(last.removeprefix("data: "))["usage"]
        else:
            usage = (await ask(service, operation, name, file.keys[ACME], **changes)).json()["usage"]
    assert sum(spent) == usage["total_tokens"] > 0


async def test_tokens_are_counted_as_they_come(service: InProcess, file: KeysFile) -> None:
    async def left() -> int:
        told = await request(service, "GET", "/admin/tenants", file.keys["root"])
        return told.json()["tenants"]["metered"]["tokens_left"]

    async with service.client.stream(
        "POST",
        PATHS["completions"],
        headers=headers(file.keys["metered"]),
        json={"model": SHARED, "prompt": [5] * 100, "max_tokens": 700, "stream": True},
    ) as answer:
        events = answer.aiter_lines()
        await anext(events)
        PacedEngine.may_go_on.clear()
        assert await left() < 950
        PacedEngine.may_go_on.set()
        async for _ in events:
            pass
    # A second brings 17.
    assert await left() < 400


async def test_a_client_that_leaves_lets_its_place_go(service: InProcess, file: KeysFile) -> None:
    key = file.keys["narrow"]

    async def in_hand() -> int:
        told = await request(service, "GET", "/admin/tenants", file.keys["root"])
        return told.json()["tenants"]["narrow"]["requests_in_hand"]

    PacedEngine.may_go_on.clear()
    try:
        leaving = asyncio.ensure_future(ask(service, "completions", SHARED, key, max_tokens=500, stream=True))
        await until_it_returns(in_hand, 1)
        second = await ask(service, "completions", SHARED, key)
        assert (second.status_code, second.headers["Retry-After"]) == (429, "1")
        assert "concurrent" in error_of(second)["message"]
        leaving.cancel()
        await until_it_returns(in_hand, 0)
    finally:
        PacedEngine.may_go_on.set()
    assert (await ask(service, "completions", SHARED, key)).status_code == 200


async def test_a_stream_by_handle_that_is_closed_lets_its_place_go(service: InProcess, file: KeysFile) -> None:
    body = BODIES["chat"] | {"model": SHARED, "max_tokens": 500}
    chunks = service.gateway.stream("chat", body, file.keys["narrow"])
    assert "error" not in await anext(chunks)
    busy = await service.gateway.call("chat", body, file.keys["narrow"])
    assert busy["error"]["code"] == 429
    await chunks.aclose()
    assert "error" not in await service.gateway.call("chat", body | {"max_tokens": 1}, file.keys["narrow"])
