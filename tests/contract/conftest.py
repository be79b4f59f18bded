from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.engine_client import RemoteEngineClient
from deployments import lifecycle, residents
from deployments.forked_engine import PoolAddress
from tests.support.fake_pool import Pool, client_of
from tests.support.pools import background_pool
from tests.support.service import CHAT_MODEL, MODELS
from tests.support.tiny_models import make_shallow


@pytest.fixture(scope="session")
def pool_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolAddress]:
    """The one process pool of the session, so that engines start in seconds."""
    with background_pool(tmp_path_factory.mktemp("pool-logs")) as address:
        yield address


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like the demo's chat model with a fifth of its layers, for tests in which it need not say anything."""
    return make_shallow(tmp_path_factory.mktemp("shallow"), MODELS / CHAT_MODEL)


@pytest.fixture
async def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Pool]:
    """Replicas with fake engines, which are looked at often, and whose deaths are forgiven."""
    monkeypatch.setattr(residents, "LOOK_PERIOD_S", 0.01)
    monkeypatch.setattr(lifecycle, "FORGIVE_AFTER_S", 0.0)
    made = Pool(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def client(pool: Pool) -> AsyncIterator[RemoteEngineClient]:
    """A gateway's client of ``pool``; at its end nothing may be left in its hands."""
    async with client_of(pool) as made:
        yield made
