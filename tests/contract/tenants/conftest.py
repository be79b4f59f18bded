from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.gateway_with_tenants import gateway_with_tenants, keys_file
from tests.support.gateways import InProcess
from tests.support.tenants import KeysFile


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def file(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KeysFile]:
    with keys_file(tmp_path_factory.mktemp("keys")) as written:
        yield written


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(file: KeysFile, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    async with gateway_with_tenants(tmp_path_factory.mktemp("gateway"), file) as running:
        yield running
