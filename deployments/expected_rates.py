"""Tells the node's store how often a replica's models will be asked for, so that it holds what will be needed.

Covers: saying it again and again, without ever holding anything up. Does not cover: the forecast (``residents`` has it
from the plan), what is held because of it (``storage.preload``).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from deployments.engine_view import Expectation
from deployments.resident import Resident
from storage.errors import StorageError

logger = logging.getLogger(__name__)

PERIOD_S = 5.0


def snapshot_rates(planned: Iterable[tuple[Resident, Expectation]]) -> dict[str, float]:
    """Return by snapshot how many requests a second the plan expects, of models that have one."""
    rates: dict[str, float] = {}
    for resident, expectation in planned:
        if snapshot_id := resident.life.snapshot_id:
            rates[snapshot_id] = rates.get(snapshot_id, 0.0) + expectation.expected_per_s
    return rates


class RatesTeller:
    """One replica's; one event loop. ``run`` first."""

    def __init__(
        self, rates: Callable[[], Mapping[str, float]], tell: Callable[[Mapping[str, float]], Awaitable[None]]
    ) -> None:
        """``rates`` returns requests a second by snapshot, ``tell`` says them to the store."""
        self._rates = rates
        self._tell = tell
        self._telling: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Begin to tell."""
        self._telling = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Tell no longer."""
        if self._telling is not None:
            self._telling.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            rates = self._rates()
            if not rates:
                continue
            try:
                await self._tell(rates)
            except StorageError as error:
                # It then goes by past use.
                logger.debug("the store was not told what is expected: %s", error)

    def __repr__(self) -> str:
        return f"<RatesTeller {'running' if self._telling is not None else 'not begun'}>"
