"""Tenants at a whole gateway: every way in is tried with another's key, and finds nothing of theirs.

Real HTTP and vLLM's own OpenAI classes; engines that need no model.
"""

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app import api_keys
from app.door import Door
from app.guard import _OPEN_PATHS, Guard, caller_of
from app.routes import PATHS, build_http_app
from tests.support.gateway_with_tenants import (
    ACME,
    BODIES,
    GLOBEX,
    NAMES,
    SECLUDED,
    SECRETS,
    SHARED,
    TENANTS,
    VECTORS,
    ask,
    error_of,
    headers,
    request,
)
from tests.support.gateways import InProcess
from tests.support.tenants import KeysFile
from tests.support.waiting import until_it_returns

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADMIN_ROUTES = [
    ("GET", "/admin/models"), ("PUT", "/admin/models/globex-model"), ("DELETE", "/admin/models/globex-model"),
    ("POST", "/admin/wake"), ("POST", "/admin/sleep"), ("POST", "/admin/stop"), ("POST", "/admin/migrate"),
    ("GET", "/admin/tiers"), ("GET", "/admin/status"), ("GET", "/admin/tenants"), ("GET", "/metrics"),
    ("GET", "/admin"), ("GET", "/"),
    ("GET", "//admin/models"), ("GET", "/%61dmin/models"), ("GET", "/v1/../admin/models"), ("GET", "/admin/models/"),
    ("GET", "/admin/adapters"), ("POST", "/admin/adapters"), ("PUT", "/admin/adapters/globex-model/json"),
    ("DELETE", "/admin/adapters/globex-model/json"), ("DELETE", "/admin/adapters/globex-model/json?owner=globex"),
    ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"), ("GET", "/ADMIN/models"),
    ("GET", "/v1/models%2f..%2f..%2fadmin/models"),
]  # fmt: skip


async def test_everybody_uses_what_is_theirs(service: InProcess, file: KeysFile) -> None:
    for name in (SHARED, "pirate", "shared-model:pirate"):
        answer = await ask(service, "chat", name, file.keys[ACME])
        assert answer.status_code == 200, answer.text
    for name in (SHARED, "globex-model", "json", "globex-model:json"):
        assert (await ask(service, "completions", name, file.keys[GLOBEX])).status_code == 200
    for name in NAMES:
        status = 404 if name == "shared-model:json" else 200
        assert (await ask(service, "chat", name, file.keys["root"])).status_code == status


@pytest.mark.parametrize("operation", PATHS)
@pytest.mark.parametrize(("tenant", "other"), [(ACME, GLOBEX), (GLOBEX, ACME)])
async def test_what_is_anothers_is_what_does_not_exist(
    service: InProcess, file: KeysFile, operation: str, tenant: str, other: str
) -> None:
    asked = len(service.pool.asked)
    for stream in ({}, {"stream": True}) if operation in {"chat", "completions"} else ({},):
        missing = await ask(service, operation, "nobody", file.keys[tenant], **stream)
        assert missing.status_code == 404
        for name in (*SECRETS[other], f"{SHARED}:{SECRETS[other][-1]}", f"{other}-model:{SECRETS[other][-1]}"):
            answer = await ask(service, operation, name, file.keys[tenant], **stream)
            assert answer.status_code == 404
            assert answer.text == missing.text.replace("nobody", name)
            assert set(answer.headers) == set(missing.headers)
    assert len(service.pool.asked) == asked, "no replica hears of it"


@pytest.mark.parametrize(("tenant", "other"), [(ACME, GLOBEX), (GLOBEX, ACME)])
async def test_lists_hold_what_is_theirs(service: InProcess, file: KeysFile, tenant: str, other: str) -> None:
    key = file.keys[tenant]
    listed = await request(service, "GET", "/v1/models", key)
    assert sorted(card["id"] for card in listed.json()["data"]) == sorted([SHARED, VECTORS, *SECRETS[tenant]])
    found = [listed, await request(service, "GET", "/health", key)]
    for name in SECRETS[tenant]:
        found.append(await request(service, "GET", f"/v1/models/{name}", key))
        assert found[-1].json()["id"] == name
    for name in SECRETS[other]:
        missing = await request(service, "GET", f"/v1/models/{name}", key)
        assert missing.status_code == 404
        assert missing.text.replace(name, "nobody") == (await request(service, "GET", "/v1/models/nobody", key)).text
    text = "".join(answer.text for answer in found)
    assert not [secret for secret in (*SECRETS[other], other) if secret in text]
    assert str(api_keys.__file__).split("app")[0] not in text, "where files are is nobody's business"


async def test_by_handle_it_is_the_same(service: InProcess, file: KeysFile) -> None:
    gateway = service.gateway
    assert sorted(card["id"] for card in await gateway.models(file.keys[ACME])) == sorted(
        [SHARED, VECTORS, *SECRETS[ACME]]
    )
    for operation, body in BODIES.items():
        for name in SECRETS[GLOBEX]:
            answer = await gateway.call(operation, body | {"model": name}, file.keys[ACME])  # type: ignore[arg-type]
            over_http = await ask(service, operation, name, file.keys[ACME])
            assert answer == over_http.json()
            chunks = [
                chunk
                async for chunk in gateway.stream(operation, body | {"model": name}, file.keys[ACME])  # type: ignore[arg-type]
            ]
            assert chunks == [answer]
    answer = await gateway.call("chat", BODIES["chat"] | {"model": "pirate"}, file.keys[ACME])
    assert answer["usage"]["completion_tokens"] == 3
    for key in (None, "", "none", file.keys[ACME] + "x"):
        for refused in (
            await gateway.call("chat", BODIES["chat"] | {"model": SHARED}, key),
            await gateway.models(key),
            *[chunk async for chunk in gateway.stream("chat", BODIES["chat"] | {"model": SHARED}, key)],
        ):
            assert isinstance(refused, dict)
            assert refused["error"]["code"] == 401


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
async def test_administration_is_for_administrators(service: InProcess, file: KeysFile, method: str, path: str) -> None:
    body = {"json": {"model": "globex-model"}} if method == "POST" else {}
    assert (await request(service, method, path, None, **body)).status_code == 401
    answer = await request(service, method, path, file.keys[ACME], **body)
    assert answer.status_code in {403, 404}, answer.text
    assert not [name for name in (*SECRETS[GLOBEX], GLOBEX) if name in answer.text]


async def test_administrators_administer(service: InProcess, file: KeysFile) -> None:
    key = file.keys["root"]
    listed = (await request(service, "GET", "/admin/models", key)).json()
    own = {f"{model}@{SECLUDED}" for model in (SHARED, VECTORS)}
    assert set(listed["models"]) == {SHARED, VECTORS, "globex-model"} | own
    assert (await request(service, "POST", "/admin/wake", key, json={"model": SHARED})).status_code == 200
    tenants = (await request(service, "GET", "/admin/tenants", key)).json()
    assert set(tenants["tenants"]) == set(TENANTS)
    assert not [secret for secret in file.keys.values() if secret in json.dumps(tenants)]


async def test_no_route_is_forgotten() -> None:
    """Whoever adds one decides whom it is for: what is not said to be for tenants is for administrators."""
    app: Any = build_http_app(None, 1000)  # type: ignore[arg-type]
    paths = {route.path for route in app._app.routes}
    for_tenants = {*PATHS.values(), "/v1/models", "/v1/models/{model_id:path}"}
    assert _OPEN_PATHS | for_tenants <= paths
    for_administrators = {"/metrics", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
    assert all(path.startswith("/admin/") for path in paths - for_tenants - _OPEN_PATHS - for_administrators)


async def test_without_a_key_only_health_answers_and_names_nothing(service: InProcess) -> None:
    for path in (*PATHS.values(), "/v1/models", f"/v1/models/{SHARED}", "/v1/nothing"):
        method = "POST" if path in PATHS.values() else "GET"
        answer = await request(service, method, path, None)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert error_of(answer)["type"] == "AuthenticationError"
    health = await request(service, "GET", "/health", None)
    assert health.json() == {"status": "ok", "models": {}}
    assert (await request(service, "GET", "/openapi.json", None)).status_code == 200


@pytest.mark.parametrize(
    "values",
    [
        [b""], [b"Bearer"], [b"Bearer "], [b"Bearer    "], [b"Basic KEY"], [b"KEY"], [b"bearerKEY"], [b"Token KEY"],
        [b"Bearer KEY x"], [b"Bearer KEY,KEY"], [b'Bearer "KEY"'], [b"Bearer KEY\xff"], [b"Bearer " + b"x" * 30_000],
        ["Bearer ключ".encode()], [b"Bearer KEY", b"Bearer KEY"], [b"Bearer KEY", b"Basic x"], [b"Bearer KEYx"],
        [b"Bearer SWAPPED"],
    ],
    ids=lambda values: repr(values)[:40],
)  # fmt: skip
async def test_odd_headers_are_no_key(service: InProcess, file: KeysFile, values: list[bytes]) -> None:
    key = file.keys[ACME].encode()
    fields = [value.replace(b"KEY", key).replace(b"SWAPPED", key.swapcase()) for value in values]
    answer = await raw(service, *fields)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nwww-authenticate: Bearer" in answer.lower().replace(b"bearer", b"Bearer")
    assert key not in answer


async def test_a_header_as_long_as_may_be_is_no_key(service: InProcess) -> None:
    answer = await raw(service, b"Bearer " + b"x" * 10_000_000)
    assert answer[9:12] in {b"", b"400", b"401", b"431"}
    assert (await request(service, "GET", "/health", None)).status_code == 200


async def raw(service: InProcess, *values: bytes) -> bytes:
    """What is answered to headers that no client would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    fields = b"".join(b"Authorization: " + value + b"\r\n" for value in values)
    try:
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + fields + b"\r\n")
        await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {}  "])
async def test_the_scheme_is_written_as_one_likes(service: InProcess, file: KeysFile, form: str) -> None:
    answer = await raw(service, form.format(file.keys[ACME]).encode())
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_key_elsewhere_is_no_key(service: InProcess, file: KeysFile) -> None:
    key = file.keys[ACME]
    elsewhere: list[dict[str, Any]] = [
        {"params": {"api_key": key, "key": key, "access_token": key, "authorization": f"Bearer {key}"}},
        {"headers": {"x-api-key": key, "api-key": key, "cookie": f"authorization=Bearer {key}"}},
        {"auth": (ACME, key)},
    ]
    for options in elsewhere:
        assert (await service.client.get("/v1/models", **options)).status_code == 401


async def test_a_refusal_comes_before_the_body(service: InProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_prefix_caches_are_apart(service: InProcess, file: KeysFile) -> None:
    before = len(service.pool.asked)
    for key in (file.keys[ACME], file.keys[GLOBEX]):
        for salt in ({}, {"cache_salt": "mine"}, {"cache_salt": "acme:mine"}):
            await ask(service, "chat", SHARED, key, **salt)
        await service.gateway.call("completions", BODIES["completions"] | {"model": SHARED}, key)
        await ask(service, "embeddings", VECTORS, key)
        await ask(service, "embeddings", VECTORS, key, cache_salt="mine")
    salts = [ask["cache_salt"] for ask in service.pool.asked[before:] if "prompt_token_ids" in ask]
    assert salts == [
        "acme:", "acme:mine", "acme:acme:mine", "acme:", "acme:", "acme:mine",
        "globex:", "globex:mine", "globex:acme:mine", "globex:", "globex:", "globex:mine",
    ]  # fmt: skip


async def test_nobody_pushes_in_with_a_priority(service: InProcess, file: KeysFile) -> None:
    before = len(service.asked(SHARED))
    for priority in (0, -5, 10**9):
        await ask(service, "completions", SHARED, file.keys[ACME], priority=priority)
    given = [ask["priority"] for ask in service.asked(SHARED)[before:] if "prompt_token_ids" in ask]
    # When they came, in milliseconds.
    assert given == sorted(given)
    assert abs(given[0] / 1000 - time.time()) < 60


async def test_only_administrators_say_how_long_a_model_stays_awake(service: InProcess, file: KeysFile) -> None:
    before = len(service.asked(SHARED))
    for tenant in (ACME, "root"):
        for way in ({"keep_alive": 7}, {"vllm_xargs": {"flashserve_keep_awake_s": 9}}):
            assert (await ask(service, "chat", SHARED, file.keys[tenant], **way)).status_code == 200
    given = [ask["keep_awake_s"] for ask in service.asked(SHARED)[before:] if "prompt_token_ids" in ask]
    assert given == [None, None, 7.0, None]
    assert (await ask(service, "chat", SHARED, file.keys[ACME], keep_alive="x")).status_code == 400


async def test_the_official_client_raises_its_own_errors(service: InProcess, file: KeysFile) -> None:
    def client(key: str) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key=key, max_retries=0)

    async with client(file.keys[ACME]) as good, client("none") as wrong, client(file.keys["limited"]) as limited:
        assert [card.id async for card in good.models.list()]
        answer = await good.completions.create(model=SHARED, prompt="one", max_tokens=2)
        assert answer.usage is not None
        with pytest.raises(openai.AuthenticationError):
            await wrong.models.list()
        with pytest.raises(openai.NotFoundError):
            await good.completions.create(model="globex-model", prompt="one")
        # An earlier test has used most of its minute up.
        with pytest.raises(openai.RateLimitError):
            await asyncio.gather(*(limited.completions.create(model=SHARED, prompt="one") for _ in range(6)))


async def test_a_key_is_taken_back_while_the_service_runs(service: InProcess, file: KeysFile) -> None:
    async def status() -> int:
        return (await request(service, "GET", "/v1/models", file.keys["narrow"])).status_code

    async def problem() -> bool:
        told = await request(service, "GET", "/admin/tenants", file.keys["root"])
        return "is no YAML" in (told.json()["problem"] or "")

    assert await status() == 200
    keys = file.sections["narrow"]["keys"]
    file.change("narrow", keys=[])
    await until_it_returns(status, 401)
    file.write_text("tenants: [")
    await until_it_returns(problem, value=True)
    assert (await request(service, "GET", "/v1/models", file.keys[ACME])).status_code == 200
    file.change("narrow", keys=keys)
    await until_it_returns(status, 200)


@pytest.mark.parametrize(
    ("host", "allowed", "served"),
    [("127.0.0.1", False, True), ("::1", False, True), ("::ffff:127.0.0.1", False, True), ("10.0.0.7", False, False),
     ("2001:db8::1", False, False), ("testclient", False, False), ("", False, False), ("10.0.0.7", True, True)],
)  # fmt: skip
async def test_without_keys_it_serves_its_own_machine(host: str, *, allowed: bool, served: bool) -> None:
    callers = {}

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        callers[scope["path"]] = caller_of(Request(scope))
        await Response()(scope, receive, send)

    guarded = Guard(inner, Door(None, gateways=1), PATHS.values(), allow_anonymous=allowed)
    transport = httpx.ASGITransport(guarded, client=(host, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers("none")) as client:
        for path in ("/v1/models", "/admin/models", "/v1/chat/completions"):
            answer = await client.get(path)
            assert answer.status_code == (200 if served else 403)
            assert served or "api_keys_file" in error_of(answer)["message"]
        assert (await client.get("/health")).status_code == 200
    assert callers["/health"].is_admin is served
