"""One line of log a request at a whole gateway, however it ends: with its id, its model and whose it was."""

import asyncio
import logging
import shlex
from collections.abc import Iterator

import pytest

from tests.support.gateway_with_tenants import ACME, BODIES, SHARED, VECTORS, headers
from tests.support.gateways import InProcess, PacedEngine
from tests.support.tenants import KeysFile
from tests.support.waiting import until_it_returns

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/v1/completions"


class Lines:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def about(self, request_id: str) -> list[dict[str, str]]:
        found = []
        for record in self._caplog.records:
            if record.name == "app.visits":
                event, *fields = shlex.split(record.getMessage())
                assert event == "request.ended"
                line = dict(field.split("=", 1) for field in fields)
                found += [line] if line["request_id"] == request_id else []
        return found


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    with caplog.at_level(logging.INFO, logger="app.visits"):
        yield Lines(caplog)


async def send(service: InProcess, key: str | None, request_id: str, model: str = SHARED, **more: object) -> int:
    body = BODIES["completions"] | {"model": model} | more
    told = (headers(key) if key is not None else {}) | {"x-request-id": request_id}
    return (await service.client.post(PATH, headers=told, json=body)).status_code


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer(service: InProcess, file: KeysFile, lines: Lines, *, stream: bool) -> None:
    request_id = f"one-{stream}"
    assert await send(service, file.keys[ACME], request_id, stream=stream) == 200
    (line,) = lines.about(request_id)
    assert (line["operation"], line["model"], line["tenant"]) == ("completions", SHARED, ACME)
    assert (line["outcome"], line["status"], line["completion_tokens"]) == ("ok", "200", "3")
    assert int(line["prompt_tokens"]) > 0
    assert 0 < float(line["first_token_s"]) <= float(line["took_s"])
    assert "reason" not in line


async def test_an_embedding(service: InProcess, file: KeysFile, lines: Lines) -> None:
    told = headers(file.keys[ACME]) | {"x-request-id": "vector"}
    body = BODIES["embeddings"] | {"model": VECTORS}
    assert (await service.client.post("/v1/embeddings", headers=told, json=body)).status_code == 200
    (line,) = lines.about("vector")
    assert (line["operation"], line["model"], line["outcome"]) == ("embeddings", VECTORS, "ok")
    assert int(line["prompt_tokens"]) > 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nobody", (401, "refused", "key", None, None)),
        ("unknown", (404, "wrong", None, ACME, None)),
        ("not theirs", (404, "wrong", None, ACME, None)),
        ("malformed", (400, "wrong", None, ACME, None)),
        ("impossible", (400, "wrong", None, ACME, SHARED)),
    ],
)
async def test_what_was_turned_away(
    service: InProcess, file: KeysFile, lines: Lines, name: str, told: tuple[object, ...]
) -> None:
    key = None if name == "nobody" else file.keys[ACME]
    changes: dict[str, dict[str, object]] = {
        "unknown": {"model": "secret/name"},
        "not theirs": {"model": "globex-model"},
        "malformed": {"max_tokens": "many"},
        "impossible": {"max_tokens": -5},
    }
    status = await send(service, key, name, **changes.get(name, {}))  # type: ignore[arg-type]
    (line,) = lines.about(name)
    fields = (status, line["outcome"], line.get("reason"), line.get("tenant"), line.get("model"))
    assert fields == told
    assert line["status"] == str(status)
    # Whatever clients make up is in no label, and no log.
    assert "secret/name" not in str(line)


async def test_a_limit_that_is_reached(service: InProcess, file: KeysFile, lines: Lines) -> None:
    PacedEngine.may_go_on.clear()
    try:
        first = asyncio.ensure_future(send(service, file.keys["narrow"], "first", max_tokens=2))
        door = service.gateway._door

        async def in_hand() -> int:
            return door._allowances["narrow"].in_hand if "narrow" in door._allowances else 0

        await until_it_returns(in_hand, 1)
        assert await send(service, file.keys["narrow"], "second") == 429
        (line,) = lines.about("second")
        assert (line["outcome"], line["reason"], line["tenant"]) == ("refused", "limit of concurrent", "narrow")
    finally:
        PacedEngine.may_go_on.set()
    assert await first == 200


async def test_a_client_that_leaves(service: InProcess, file: KeysFile, lines: Lines) -> None:
    told = headers(file.keys[ACME]) | {"x-request-id": "leaver"}
    body = {"model": SHARED, "prompt": "x", "max_tokens": 500, "stream": True}
    async with service.client.stream("POST", PATH, headers=told, json=body) as answer:
        await anext(answer.aiter_lines())
        PacedEngine.may_go_on.clear()
    try:

        async def ended() -> int:
            return len(lines.about("leaver"))

        await until_it_returns(ended, 1)
    finally:
        PacedEngine.may_go_on.set()
    (line,) = lines.about("leaver")
    assert (line["outcome"], line["status"], line["model"]) == ("left", "200", SHARED)
    assert 0 < int(line["completion_tokens"]) < 500


async def test_an_id_cannot_forge_a_line(service: InProcess, file: KeysFile, lines: Lines) -> None:
    forged = 'x outcome=ok tenant="root"'
    assert await send(service, file.keys[ACME], forged) == 200
    (line,) = lines.about(forged)
    assert line["tenant"] == ACME
    assert await send(service, file.keys[ACME], "y" * 5000) == 200
    assert len(lines.about("y" * 128)) == 1


async def test_by_handle_it_is_the_same(service: InProcess, file: KeysFile, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="app.visits"):
        await service.gateway.call("chat", BODIES["chat"] | {"model": SHARED}, file.keys[ACME])
        await service.gateway.call("chat", BODIES["chat"] | {"model": "none"}, file.keys[ACME])
        await service.gateway.call("chat", BODIES["chat"] | {"model": SHARED}, "none")
        async for _ in service.gateway.stream("chat", BODIES["chat"] | {"model": SHARED}, file.keys[ACME]):
            pass
    told = [record.getMessage() for record in caplog.records if record.name == "app.visits"]
    assert [line.split("outcome=")[1].split()[0] for line in told] == ["ok", "wrong", "refused", "ok"]
    assert all(f"model={SHARED} tenant={ACME}" in told[index] for index in (0, 3))
    assert len({line.split("request_id=")[1].split()[0] for line in told}) == 4
