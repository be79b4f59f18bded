"""Whether what never ends has ended: the sentence that Serve's log gives for a replica that is unhealthy."""

import asyncio
from typing import Any

from deployments.errors import CareEndedError


def check_goes_on(task: "asyncio.Future[Any] | None", doing: str, *, may_end: bool = False) -> None:
    """Return while ``task``, which has no end of its own (unless it ``may_end``), goes on; also before it has begun.

    Raises:
        CareEndedError: it has ended; nobody is ``doing`` that any more.
    """
    if task is None or not task.done():
        return
    if task.cancelled():
        raise CareEndedError(doing, "it was cancelled")
    error = task.exception()
    if error is None and may_end:
        return
    raise CareEndedError(doing, "it came to an end" if error is None else describe(error)) from error


def describe(error: BaseException) -> str:
    """Return an error in one line, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
