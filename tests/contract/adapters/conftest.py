import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from app import api_keys
from deployments import adapter_leases
from tests.support.gateway_with_adapters import TENANTS, Admin, gateway_with, on_disk, resident
from tests.support.gateways import InProcess
from tests.support.tenants import KeysFile
from tests.support.waiting import until_it_returns


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def file(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KeysFile]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_keys, "_LOG_COST", 10)
        yield KeysFile(tmp_path_factory.mktemp("keys") / "keys.yaml", **TENANTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where adapters are looked for."""
    return tmp_path_factory.mktemp("adapters")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(file: KeysFile, place: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    directory = tmp_path_factory.mktemp("gateway")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_leases, "KEEP_GONE_S", 0.0)
        async with gateway_with(directory, file, place) as running:
            yield running


@pytest.fixture
def admin(service: InProcess, file: KeysFile) -> Admin:
    return Admin(service, file)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def empty(service: InProcess, admin: Admin, place: Path) -> AsyncIterator[None]:
    """Each test ends without adapters, in the list, in engines, and on the disk."""
    yield
    for each in (await admin("GET", "/admin/adapters")).json()["adapters"]:
        await admin.delete(each["id"], each["owner"], each["model"])
    await until_it_returns(lambda: resident(service), [])
    await until_it_returns(lambda: on_disk(service), set())
    shutil.rmtree(place)
    await asyncio.to_thread(place.mkdir)
