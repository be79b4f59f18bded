"""A gateway with tenants, in the test's own process; engines that need no model."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import api_keys
from app.routes import PATHS
from tests.support.gateways import InProcess, embedding_model, gateway_of, model
from tests.support.tenants import KeysFile

# What each of two tenants has, and the other must not find: an adapter on a model that both have; a model and its own.
ACME, GLOBEX = "acme", "globex"
# Has engines of its own.
SECLUDED = "secluded"
SHARED = "shared-model"
VECTORS = "vectors-of-all"
SECRETS = {ACME: ["pirate"], GLOBEX: ["globex-model", "json"]}
TENANTS: dict[str, dict[str, Any]] = {
    ACME: {"models": [SHARED, VECTORS], "adapters": ["shared-model:pirate"]},
    GLOBEX: {"models": [SHARED, VECTORS, "globex-model"], "adapters": ["globex-model:json"]},
    SECLUDED: {"models": [SHARED, VECTORS]},
    "limited": {"models": [SHARED], "requests_per_minute": 5, "tokens_per_minute": 1000},
    "narrow": {"models": [SHARED], "max_concurrent_requests": 1},
    "metered": {"models": [SHARED], "tokens_per_minute": 1000},
    "root": {"admin": True},
}
NAMES = [*SECRETS[ACME], *SECRETS[GLOBEX], "shared-model:json", "shared-model:pirate", "globex-model:json"]
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
    "completions": {"prompt": "one two three", "max_tokens": 3},
    "embeddings": {"input": "one"},
    "tokenize": {"prompt": "one"},
    "detokenize": {"tokens": [1, 2]},
}


@contextmanager
def keys_file(directory: Path) -> Iterator[KeysFile]:
    """A file of these tenants, whose keys are cheap to check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_keys, "_LOG_COST", 10)
        yield KeysFile(directory / "keys.yaml", **TENANTS)


@asynccontextmanager
async def gateway_with_tenants(directory: Path, file: KeysFile) -> AsyncIterator[InProcess]:
    specs = model(SHARED, "pirate"), model("globex-model", "json"), embedding_model(VECTORS)
    own_engines = {SHARED: (SECLUDED,), VECTORS: (SECLUDED,)}
    async with gateway_of(directory, *specs, keys_file=file.path, own_engines=own_engines) as running:
        # Whatever is asked for first waits until it is built.
        for spec in specs:
            (await ask(running, "tokenize", spec.id, file.keys["root"])).raise_for_status()
        yield running


def headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


async def request(service: InProcess, method: str, path: str, key: str | None, **options: Any) -> httpx.Response:
    return await service.client.request(method, path, headers=headers(key), **options)


async def ask(service: InProcess, operation: Any, name: str, key: str | None, **changes: Any) -> httpx.Response:
    body = BODIES[operation] | {"model": name} | changes
    return await request(service, "POST", PATHS[operation], key, json=body)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}, body
    assert body["error"]["code"] == response.status_code
    return body["error"]
