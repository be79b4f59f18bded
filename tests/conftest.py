import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

INTEGRATION = "tests/integration/"

# xdist gives its processes the size of a terminal, which consoles that are made at import would keep.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


class _TwoHalves(LoadScopeScheduling):
    """Of two processes one runs the integration tests, which share services, and the other all else, file by file."""

    def _split_scope(self, nodeid: str) -> str:
        return INTEGRATION if nodeid.startswith(INTEGRATION) else nodeid.split("::", maxsplit=1)[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _TwoHalves(config, log)
