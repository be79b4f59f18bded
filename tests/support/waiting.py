"""Waiting for what another process does in its own time."""

import time
from collections.abc import Callable
from typing import Any

_PERIOD_S = 0.02


def until(holds: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Return what ``holds`` returns once that is true."""
    deadline_s = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < deadline_s, f"did not hold within {within_s:g} s"
        time.sleep(_PERIOD_S)
    return found
