import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

INTEGRATION = "tests/integration/"
UNIT = "tests/unit/"
# With clusters of their own.
BY_THEMSELVES = {f"{INTEGRATION}test_{name}.py" for name in ("launch", "nodes", "peers", "scaling_live", "tiers")}

# Threads of torch that wait for each other do it asleep: there are more of them than processors.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Serve, in clusters that tests start in their own process, ends proxies that take longer, and a busy machine is slow.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

# xdist gives its processes the size of a terminal, which consoles that are made at import would keep.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The second service comes when the first has had its tests, and ends it.
    items.sort(key=lambda item: ("guarded" in _fixtures(item), item.get_closest_marker("timed") is not None))


def _fixtures(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


class _SharedServicesTogether(LoadScopeScheduling):
    """Of two processes one begins with the integration tests that share services; all else goes file by file.

    Unit tests come last: many small files, with which both processes end at about the same time.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", maxsplit=1)[0]
        return INTEGRATION if file.startswith(INTEGRATION) and file not in BY_THEMSELVES else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        first = next((scope for scope in self.workqueue if not scope.startswith(UNIT)), None)
        if first is not None:
            self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _SharedServicesTogether(config, log)
