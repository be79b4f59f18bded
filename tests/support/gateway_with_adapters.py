"""A gateway whose models take adapters, in the test's own process; its engines need no model."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.gateways import InProcess, gateway_of, model
from tests.support.service import ADAPTERS
from tests.support.tenants import KeysFile

PIRATE, JSON = str(ADAPTERS / "pirate"), str(ADAPTERS / "json")
TENANTS: dict[str, dict[str, Any]] = {
    "acme": {"models": ["m"], "adapters": ["m:shared", "m:lazy-*", "m:lazy"]},
    "globex": {"models": ["m"], "adapters": []},
    "every": {"models": ["m"], "adapters": ["m:*"]},
    "root": {"admin": True},
}


@asynccontextmanager
async def gateway_with(directory: Path, file: KeysFile, place: Path) -> AsyncIterator[InProcess]:
    specs = model("m", lora=True), model("team/other", lora=True), model("plain")
    async with gateway_of(directory, *specs, keys_file=file.path, lora_source=str(place)) as running:
        running.directory = directory  # type: ignore[attr-defined]
        yield running


class Admin:
    """An administrator's client, and tenants' questions."""

    def __init__(self, service: InProcess, file: KeysFile) -> None:
        self.service = service
        self.file = file

    async def __call__(self, method: str, path: str, key: str = "root", **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.file.keys[key]}"}
        return await self.service.client.request(method, path, headers=headers, **options)

    async def put(self, name: str, source: str, owner: str | None = None, model_id: str = "m") -> httpx.Response:
        body = {"source": source} | ({} if owner is None else {"owner": owner})
        return await self("PUT", f"/admin/adapters/{model_id}/{name}", json=body)

    async def delete(self, name: str, owner: str | None = None, model_id: str = "m") -> httpx.Response:
        params = {} if owner is None else {"owner": owner}
        return await self("DELETE", f"/admin/adapters/{model_id}/{name}", params=params)

    async def listed(self) -> dict[str, Any]:
        answer = (await self("GET", "/admin/adapters")).json()["adapters"]
        return {f"{each['owner'] or ''}/{each['id']}": each for each in answer if each["model"] == "m"}

    async def ask(self, name: str, key: str = "root", **changes: Any) -> httpx.Response:
        body = {"model": name, "prompt": "one two", "max_tokens": 3} | changes
        return await self("POST", "/v1/completions", key, json=body)

    async def asked(self, name: str, key: str = "root") -> dict[str, Any] | None:
        """What reaches a replica: the adapter that a name stands for."""
        answer = await self.ask(name, key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == name.rpartition(":")[2].rpartition("/")[2]
        return self.service.asked("m")[-1]["adapter"]


async def resident(service: InProcess) -> list[str]:
    names = await service.pool.target.adapters({})
    return sorted(name for of_model in names.values() for name in of_model)


async def on_disk(service: InProcess) -> set[str]:
    return service.gateway._gateway.adapters._files.digests()
