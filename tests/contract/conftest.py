from collections.abc import Iterator

import pytest

from deployments.forked_engine import PoolAddress
from tests.support.pools import background_pool


@pytest.fixture(scope="session")
def pool_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolAddress]:
    """The one process pool of the session, so that engines start in seconds."""
    with background_pool(tmp_path_factory.mktemp("pool-logs")) as address:
        yield address
