"""Which engines the plan wants ahead of their replicas, and which node forks them.

Covers: asking the forecaster and the nodes, choosing. Does not cover: the plan (``autoscaler``, which this package
doesn't import), forking (``engines_ahead``), and where Serve starts the replica: who chose the wrong node has wasted a
start, nothing else.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from deployments.health import check_goes_on
from deployments.plan_follower import NAMESPACE

PERIOD_S = 1.0
ANSWER_S = 3.0

logger = logging.getLogger(__name__)


class AheadOrders:
    """One application's; ``run`` first, in an event loop."""

    def __init__(self, forecaster: str, nodes: Mapping[str, Any]) -> None:
        """``forecaster`` is the name of the actor; ``nodes`` are handles of the nodes' actors, as they are then."""
        self._forecaster = forecaster
        self._nodes = nodes
        self._actor: Any = None
        self._ordering: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Begin to order."""
        self._ordering = asyncio.get_running_loop().create_task(self._go_on())

    def check(self) -> None:
        """Raise what has ended the ordering, if anything has."""
        check_goes_on(self._ordering, "ordering engines ahead of their replicas")

    async def _go_on(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    if self._actor is None:
                        self._actor = await asyncio.to_thread(ray.get_actor, self._forecaster, NAMESPACE)
                    await self.order(await self._actor.engines_ahead.remote())
            except (RayError, ValueError, TimeoutError) as error:
                self._actor = None
                logger.debug("no engine is forked ahead: %s", error)
            await asyncio.sleep(PERIOD_S)

    async def order(self, wanted: Iterable[str]) -> None:
        """Have the nodes fork engines of the models that are wanted. Raises RayError."""
        wanted = sorted(wanted)
        if not wanted:
            return
        nodes = dict(self._nodes)
        known = await asyncio.gather(*(node.engines_ahead.remote() for node in nodes.values()), return_exceptions=True)
        found = {key: each for key, each in zip(nodes, known, strict=True) if not isinstance(each, BaseException)}
        for model_id, node in chosen(wanted, found).items():
            await nodes[node].fork_ahead.remote(model_id)

    def __repr__(self) -> str:
        return f"<AheadOrders of {self._forecaster}>"


def chosen(wanted: Iterable[str], known: Mapping[str, Mapping[str, bool]]) -> dict[str, str]:
    """Return by model the node that is to have its engine ahead: the one that has it, else the one with fewest.

    ``known`` says, by node and by model that it knows how to start, whether one is ahead there.
    """
    number = {node: sum(models.values()) for node, models in known.items()}
    result: dict[str, str] = {}
    for model_id in wanted:
        nodes = [node for node, models in known.items() if model_id in models]
        if nodes:
            node = min(nodes, key=lambda each: (not known[each][model_id], number[each], each))
            number[node] += not known[node][model_id]
            result[model_id] = node
    return result
