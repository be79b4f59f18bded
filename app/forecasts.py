"""A gateway's way to the forecaster: what it counts goes there, what is planned comes from there.

Covers: one gateway, with or without a forecaster. Does not cover: counting (``demand``), the plan (``autoscaler``).
"""

import asyncio
import time
from typing import Any

from ray import serve
from ray.exceptions import RayError

from app.demand import Demand, NamedForecaster
from app.errors import ForecastUnavailableError
from autoscaler.actor import forecaster_name

_ANSWER_S = 5.0


class Forecasts:
    """One event loop."""

    def __init__(self, keeper: Any) -> None:
        """``keeper`` is a Serve handle of the deployment whose actor is asked; None without a forecaster."""
        self.demand: Demand | None = None
        self._forecaster: NamedForecaster | None = None
        if keeper is not None:
            context = serve.get_replica_context()
            self._forecaster = NamedForecaster(forecaster_name(context.app_name))
            # The time, because numbers begin anew with every process.
            source = f"{context.replica_id.unique_id}@{time.time():.3f}"
            self.demand = Demand(source, self._forecaster.push)
            self.demand.run()

    async def plan(self, model: str | None) -> dict[str, Any]:
        """Return the plan, see ``ForecasterActor.plan``.

        Raises:
            ForecastUnavailableError: there is no forecaster, or it does not answer.
        """
        if self._forecaster is None:
            raise ForecastUnavailableError("the configuration has `autoscaling: null`")
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._forecaster.plan(model)
        except (RayError, ValueError, TimeoutError) as error:
            raise ForecastUnavailableError(f"the forecaster does not answer ({type(error).__name__})") from error

    def close(self) -> None:
        """Push no more."""
        if self.demand is not None:
            self.demand.close()

    def __repr__(self) -> str:
        return f"<Forecasts {self.demand!r}>"
