"""What the status page shows, in one answer: engines, tiers and the plan, each also where others can't be had."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from app.errors import AppError
from deployments.errors import DeploymentError
from deployments.types import EngineDescription


class Watched(Protocol):
    """What is asked for it; see ``routes.Service``."""

    async def engines(self) -> dict[str, EngineDescription]:
        """Return each model's engine."""
        ...

    async def tiers(self) -> dict[str, Any]:
        """Return what each node's tiers hold."""
        ...

    async def plan(self, model: str | None) -> dict[str, Any]:
        """Return what is expected and planned."""
        ...


async def service_status(service: Watched) -> dict[str, Any]:
    """Return ``at_s``, ``models``, ``nodes`` (their tiers) and ``plan``; what can't be had is None, with why."""
    problems: dict[str, str] = {}

    async def told(what: str, asked: Awaitable[Any]) -> Any:
        try:
            return await asked
        except (AppError, DeploymentError, RayError, RayServeException) as error:
            problems[what] = str(error).splitlines()[0] if str(error) else type(error).__name__
            return None

    models, nodes, plan = await asyncio.gather(
        told("models", service.engines()), told("nodes", service.tiers()), told("plan", service.plan(None))
    )
    return {"at_s": time.time(), "models": models, "nodes": nodes, "plan": plan, "problems": problems}
