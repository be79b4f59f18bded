"""A replica's residents with engines that need no model, for tests of what they do when."""

import asyncio
from pathlib import Path

from deployments.errors import WakeError
from deployments.fake_engine import ASLEEP_BYTES, AWAKE_BYTES, FakeEngine
from deployments.residency import Limits
from deployments.residents import Residents
from deployments.types import ModelSpec, StartReport

ONE_AWAKE = AWAKE_BYTES + 3 * ASLEEP_BYTES


class GatedEngine(FakeEngine):
    """Counts wakes; they wait while ``gate`` is closed, and fail while ``broken``."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.wakes = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False
        self.is_stopped = False
        self.found_in = "dram"

    async def stop(self) -> None:
        self.is_stopped = True
        await super().stop()

    def start_report(self) -> StartReport:
        return {**super().start_report(), "found_in": self.found_in, "snapshot_id": "its snapshot"}

    async def wake(self, snapshot: Path | None = None) -> None:
        self.wakes += 1
        await self.gate.wait()
        if self.broken:
            raise WakeError("any", "told to fail")
        await super().wake(snapshot)


class Setup:
    """A replica's residents, and the engines they have made, by model."""

    def __init__(self) -> None:
        self.engines: dict[str, list[GatedEngine]] = {}
        self.made: list[Residents] = []
        self.tier = "dram"

    async def __call__(
        self, *specs: ModelSpec, budget_bytes: int = 10**6, max_wait_s: float = 10, min_residency_s: float = 0.0
    ) -> Residents:
        limits = Limits(budget_bytes, min_residency_s=min_residency_s, max_starvation_s=1.0)
        made = Residents(list(specs), self._make, limits, max_wait_s, lambda _: self.tier)
        self.made.append(made)
        made.run()
        for spec in specs:
            await made.supported_tasks(spec.id)
        return made

    def _make(self, spec: ModelSpec) -> GatedEngine:
        self.engines.setdefault(spec.id, []).append(GatedEngine(spec))
        return self.engines[spec.id][-1]


def spec(model_id: str, **fields: object) -> ModelSpec:
    return ModelSpec(model_id, "", **({"awake_bytes": AWAKE_BYTES, "ttft_slo_s": 0.01} | fields))  # type: ignore[arg-type]
