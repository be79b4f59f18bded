"""Tenants at a real service: Serve's proxy and handles, vLLM's prefix cache, Ray's metrics.

What a gateway lets in by itself is in the contract suite; here is what depends on those around it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.support.ray_head import command
from tests.support.service import CHAT_MODEL, Service
from tests.support.tenants import KeysFile
from tests.support.waiting import until

ACME, GLOBEX, ROOT = "acme", "globex", "root"
# The one that has an engine of its own.
INITECH = "initech"
# Longer than a block of the prefix cache.
LONG = "The quick brown fox jumps over the lazy dog. " * 20
JOB = """
import json, sys
from app.client import connect
from app.errors import ApiError

def outcome(call):
    try:
        return call()
    except ApiError as error:
        return [error.code, error.message]

found = {}
for name, key in json.loads(sys.argv[2]).items():
    fs = connect(api_key=key)
    ask = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}
    found[name] = {
        "models": outcome(lambda: [card["id"] for card in fs.models()]),
        "pirate": outcome(lambda: fs.chat(model="pirate", **ask)),
        "stream": outcome(lambda: "".join(
            choice["delta"].get("content") or ""
            for chunk in fs.chat(model=sys.argv[1], stream=True, **ask) for choice in chunk["choices"]
        )),
    }
    for method in ("wake", "engines", "put_model", "_gateway", "_door", "tenants"):
        try:
            found[name][method] = repr(getattr(fs._gateway, method).remote(sys.argv[1]).result())
        except Exception as error:
            found[name][method] = None
print("FOUND " + json.dumps(found))
"""


@pytest.fixture
def file(keys_file: KeysFile) -> KeysFile:
    return keys_file


@pytest.fixture
def service(guarded: Service) -> Service:
    return guarded


def client(service: Service, key: str) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0)


def get(service: Service, path: str, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{service.url}{path}", headers=headers, timeout=60)


def cached(service: Service, key: str, model: str, text: str, **extra: Any) -> int:
    """How many tokens of the prompt had been computed before, as far as this tenant's cache knows."""
    answer = client(service, key).chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=1, extra_body=extra
    )
    assert answer.usage is not None
    details = answer.usage.prompt_tokens_details
    return (details.cached_tokens or 0) if details is not None else 0


def test_the_official_client_sees_what_is_its_own(service: Service, file: KeysFile) -> None:
    acme, globex = client(service, file.keys[ACME]), client(service, file.keys[GLOBEX])
    assert {card.id for card in acme.models.list()} == {CHAT_MODEL, "pirate"}
    assert {card.id for card in globex.models.list()} == {CHAT_MODEL}
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = acme.chat.completions.create(model="pirate", messages=question, max_tokens=20, temperature=0)
    assert "Paris" in str(answer.choices[0].message.content)
    with pytest.raises(openai.NotFoundError):
        globex.chat.completions.create(model="pirate", messages=question)
    with pytest.raises(openai.AuthenticationError):
        client(service, "none").models.list()
    assert get(service, "/v1/models", None).headers["WWW-Authenticate"] == "Bearer"


def test_nobody_hits_the_prefix_cache_of_another(service: Service, file: KeysFile) -> None:
    assert cached(service, file.keys[ACME], CHAT_MODEL, LONG) == 0
    assert cached(service, file.keys[ACME], CHAT_MODEL, LONG) > 0
    assert cached(service, file.keys[GLOBEX], CHAT_MODEL, LONG, cache_salt="acme:") == 0
    assert cached(service, file.keys[GLOBEX], CHAT_MODEL, LONG) == 0
    assert cached(service, file.keys[GLOBEX], CHAT_MODEL, LONG) > 0


def test_nor_that_of_an_adapter(service: Service, file: KeysFile) -> None:
    assert cached(service, file.keys[ACME], "pirate", LONG) == 0
    assert cached(service, file.keys[ACME], "pirate", LONG) > 0
    assert cached(service, file.keys[ROOT], "pirate", LONG) == 0


def test_an_engine_of_ones_own_answers_alike(service: Service, file: KeysFile) -> None:
    ask: Any = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": LONG}], "max_tokens": 8, "temperature": 0}
    answers = [
        client(service, file.keys[tenant]).chat.completions.create(**ask).choices[0].message.content
        for tenant in (ACME, INITECH)
    ]
    assert answers[0] == answers[1]
    own = f"{CHAT_MODEL}@{INITECH}"
    assert get(service, "/admin/models", file.keys[ROOT]).json()["models"][own]["state"] == "awake"
    assert {card.id for card in client(service, file.keys[INITECH]).models.list()} == {CHAT_MODEL}


def test_administration_and_metrics_are_for_administrators(service: Service, file: KeysFile) -> None:
    for path in ("/admin/models", "/admin/tenants", "/admin/tiers", "/metrics"):
        assert get(service, path, None).status_code == 401
        assert get(service, path, file.keys[ACME]).status_code == 403
        assert get(service, path, file.keys[ROOT]).status_code == 200
    label = 'tenant="acme"'
    until(lambda: "ray_flashserve_tenant_tokens_total" in get(service, "/metrics", file.keys[ROOT]).text, 60)
    assert label in get(service, "/metrics", file.keys[ROOT]).text
    arguments = [command("flashserve"), "status", "--url", service.url]
    refused = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert (refused.returncode, "An API key is needed" in refused.stderr) == (1, True)
    environment = service.environment | {"FLASHSERVE_API_KEY": file.keys[ROOT]}
    assert CHAT_MODEL in subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout
    arguments[1] = "tenants"
    assert (
        "root (admin)" in subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout
    )


def test_a_client_that_leaves_lets_its_place_go(service: Service, file: KeysFile) -> None:
    body = {"model": CHAT_MODEL, "prompt": "Once", "max_tokens": 900, "stream": True, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {file.keys[GLOBEX]}"}

    def in_hand() -> int:
        return get(service, "/admin/tenants", file.keys[ROOT]).json()["tenants"][GLOBEX]["requests_in_hand"]

    with httpx.stream("POST", f"{service.url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        second = httpx.post(f"{service.url}/v1/completions", json=body, headers=headers, timeout=60)
        assert (second.status_code, second.headers["Retry-After"]) == (429, "1")
        assert in_hand() == 1
    until(lambda: in_hand() == 0, 30)


def test_handles_have_keys_too(service: Service, file: KeysFile, tmp_path: Path) -> None:
    keys = {name: file.keys.get(name) for name in (ACME, GLOBEX, "nobody")}
    done = subprocess.run(
        [sys.executable, "-c", JOB, CHAT_MODEL, json.dumps(keys)],
        env=service.environment | {"RAY_ADDRESS": service.ray_address},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout + done.stderr
    found = json.loads(lines[0].removeprefix("FOUND "))
    assert (found[ACME]["models"], found[GLOBEX]["models"]) == ([CHAT_MODEL, "pirate", "json"][:2], [CHAT_MODEL])
    assert found[ACME]["pirate"]["usage"]["completion_tokens"] == 2
    assert found[GLOBEX]["pirate"] == [404, "The model `pirate` does not exist."]
    assert found[ACME]["stream"] == found[GLOBEX]["stream"] != ""
    needed = [401, "An API key is needed, in the header `Authorization: Bearer KEY`."]
    assert [found["nobody"][what] for what in ("models", "pirate", "stream")] == [needed] * 3
    for told in found.values():
        assert [told[method] for method in ("wake", "engines", "put_model", "_gateway", "_door", "tenants")] == [
            None
        ] * 6


def test_a_key_is_taken_back_while_the_service_runs(service: Service, file: KeysFile) -> None:
    assert get(service, "/v1/models", file.keys[ACME]).status_code == 200
    file.change(ACME, keys=[])
    until(lambda: get(service, "/v1/models", file.keys[ACME]).status_code == 401, 30)
    assert get(service, "/v1/models", file.keys[GLOBEX]).status_code == 200
