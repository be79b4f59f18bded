"""Adapters that are asked for most, brought into engines that have nothing else to do, before anybody waits for them.

Covers: which of an engine's adapters, and bringing them there. Does not cover: how often they are asked for
(``autoscaler`` tells it with the plan), loading (``engine_adapters``), what leaves an engine: vLLM lets go what it used
least lately, which after this is what is worth least.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping

from deployments.adapter_leases import AdapterLeases
from deployments.adapters import AdapterPlaces, qualified, ref_of
from deployments.errors import DeploymentError
from deployments.resident import Resident
from deployments.residents import Residents
from deployments.types import AdapterSpec
from storage.preload import Candidate, choose

PERIOD_S = 2.0
STAYS = 1.25
"""What is there is worth so much more than what would have to come, so that no two take turns."""
REST_S = 60.0
"""So long one that could not be loaded is not tried again unasked."""

logger = logging.getLogger(__name__)


def to_load(
    adapters: Iterable[AdapterSpec], shares: Mapping[str, float], places: AdapterPlaces, room: int
) -> list[AdapterSpec]:
    """Return the adapters to load into an engine that has host memory for ``room`` of them, in this order.

    ``shares`` are of its requests, by qualified name. Those that are worth most come last, also if they are there: so
    they are the last that it lets go. None if all that are worth most are there.
    """
    known = {qualified(ref_of(each)): each for each in adapters}
    candidates = []
    for name in shares.keys() & known.keys():
        digest = known[name].digest
        saved_s = places.dram_s if digest in places.dram else places.elsewhere_s
        # Each takes one place, however large it is.
        candidates.append(Candidate(name, 1, saved_s * (STAYS if digest in places.host else 1.0), shares[name]))
    chosen = [known[name] for name in choose(candidates, room)]
    if all(each.digest in places.host for each in chosen):
        return []
    return chosen[::-1]


class AdapterPreloader:
    """One replica's; one event loop. ``run`` first."""

    def __init__(self, residents: Residents, leases: AdapterLeases) -> None:
        self._residents = residents
        self._leases = leases
        # By digest, of adapters that could not be loaded.
        self._rest_until_s: dict[str, float] = {}
        self._loading: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Begin to load ahead."""
        self._loading = asyncio.get_running_loop().create_task(self._go_on())

    def close(self) -> None:
        """Load nothing more."""
        if self._loading is not None:
            self._loading.cancel()

    async def look(self) -> None:
        """Load what is missing into the engines that are awake and have nothing in hand."""
        for resident, expectation in self._residents.planned():
            if resident.is_idle and resident.spec.lora_enabled and expectation.adapters:
                try:
                    await self._fill(resident, expectation.adapters)
                except DeploymentError as error:
                    # It fell asleep, or ended, or can't use one of them.
                    logger.info("no adapters of %s are loaded ahead: %s", resident.spec.id, error)

    async def _fill(self, resident: Resident, shares: Mapping[str, float]) -> None:
        spec, now_s = resident.spec, time.monotonic()
        self._rest_until_s = {digest: until_s for digest, until_s in self._rest_until_s.items() if until_s > now_s}
        adapters = [each for each in spec.adapters if each.digest not in self._rest_until_s]
        places = await resident.life.adapter_places()
        # What vLLM takes where nothing is said.
        room = int(spec.engine.get("max_cpu_loras") or spec.max_loras)
        for adapter in to_load(adapters, shares, places, room):
            try:
                async with self._leases.held(spec.id, ref_of(adapter)) as ref:
                    await resident.life.preload_adapter(ref or ref_of(adapter))
            except DeploymentError:
                self._rest_until_s[adapter.digest] = now_s + REST_S
                raise
            if adapter.digest not in places.host:
                logger.info("adapter %s is in the engine of %s ahead of requests", adapter.id, spec.id)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.look()
            except Exception:
                # Nobody depends on it, and the next look may do better.
                logger.exception("looking for adapters to load ahead failed")

    def __repr__(self) -> str:
        return f"<AdapterPreloader of {self._residents!r}>"
