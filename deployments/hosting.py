"""Which models a replica hosts, as the application's catalogue says now: asked at the start, and followed from then on.

Does not cover: where the list is kept (``app``), what a change means for engines (``residents``).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.health import check_goes_on
from deployments.types import ModelSpec

logger = logging.getLogger(__name__)

_RETRY_S = 0.5


class HostedModels:
    """Follows the list for one pool; ``run`` first."""

    def __init__(
        self,
        catalogue: Any,
        pool: str,
        apply: Callable[[list[ModelSpec]], None],
        keep: Callable[[frozenset[str]], None] = lambda _: None,
    ) -> None:
        """``catalogue`` is a Serve handle.

        ``apply`` gets the whole list whenever it has changed, and ``keep`` the digests of all models' adapters, also of
        those that are hosted elsewhere.
        """
        self._catalogue = catalogue
        self._pool = pool
        self._apply = apply
        self._keep = keep
        self._version: str | None = None
        self._taken = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Begin to follow."""
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def until(self, holds: Callable[[], bool], within_s: float | None = None) -> bool:
        """Wait until the list has come and what it made so ``holds``; return whether it did in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._version is None or not holds():
                    await self._taken.wait()
        return self._version is not None and holds()

    def check(self) -> None:
        """Raise what has ended the following, if anything has."""
        check_goes_on(self._following, "following which models there are")

    def close(self) -> None:
        """Follow no longer."""
        if self._following is not None:
            self._following.cancel()

    async def _follow(self) -> None:
        while True:
            try:
                self._take(await self._catalogue.hosted.remote(self._pool, self._version))
            except (RayError, RayServeException) as error:
                logger.warning("the catalogue does not answer: %s", error)
                await asyncio.sleep(_RETRY_S)

    def _take(self, found: tuple[str, list[ModelSpec], frozenset[str]] | None) -> None:
        if found is None or found[0] == self._version:
            return
        self._version, specs, digests = found
        self._apply(specs)
        self._keep(digests)
        self._taken.set()
        self._taken = asyncio.Event()

    def __repr__(self) -> str:
        return f"<HostedModels of pool {self._pool}, version {(self._version or 'none')[:8]}>"
