"""What a deployment says when something has ended that it needs."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from deployments.errors import CareEndedError
from deployments.health import check_goes_on


async def fails() -> None:
    raise ValueError("of no use\nand more")


async def ends() -> None:
    pass


async def goes_on() -> None:
    await asyncio.Event().wait()


async def ended(work: Coroutine[Any, Any, None], *, cancel: bool = False) -> asyncio.Task[None]:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    if cancel:
        task.cancel()
    await asyncio.wait([task])
    return task


async def test_what_goes_on_or_has_not_begun_is_well() -> None:
    task = asyncio.ensure_future(goes_on())
    check_goes_on(task, "looking")
    check_goes_on(None, "looking")
    check_goes_on(await ended(ends()), "looking", may_end=True)
    task.cancel()


@pytest.mark.parametrize(
    ("work", "cancel", "why"),
    [(fails, False, "ValueError: of no use"), (ends, False, "it came to an end"), (goes_on, True, "it was cancelled")],
)
async def test_what_has_ended_is_named_with_the_reason(work: Any, cancel: bool, why: str) -> None:  # noqa: FBT001
    task = await ended(work(), cancel=cancel)
    with pytest.raises(CareEndedError) as told:
        check_goes_on(task, "looking after the engines")
    assert str(told.value) == f"Nobody is looking after the engines any more: {why}"
    if not cancel and work is fails:
        assert isinstance(told.value.__cause__, ValueError)
        with pytest.raises(CareEndedError):
            check_goes_on(task, "looking", may_end=True)
