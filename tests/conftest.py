from pathlib import Path

import pytest

INTEGRATION = Path(__file__).parent / "integration"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two processes one runs the integration tests, which share services, and the other all else, file by file."""
    for item in items:
        group = INTEGRATION if INTEGRATION in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(str(group)))
