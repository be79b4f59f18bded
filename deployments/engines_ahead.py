"""Engines that this node forks ahead of their replicas, so that one which comes up finds its engine serving already.

Covers: remembering how engines are started, starting one when told to, giving it to the replica that claims it, ending
those that nobody claims. Does not cover: when one is wanted (``autoscaler``), on which node (``ahead_orders``), the
replica's side (``recipe``).

An engine here has its node for a client: it ends with the node's actor, as it would with its replica.
"""

import asyncio
import logging
import pickle
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deployments.errors import DeploymentError
from deployments.forked_engine import ForkedEngine, PoolAddress
from deployments.pool_wire import EngineRequest, receive_frame
from deployments.recipe import Claim, Recipe, ahead_path, answer_claim
from storage.errors import StorageError
from storage.lease import Lease

KEEP_S = 60.0
"""So long after it was last wanted an engine waits for its replica; one takes about a quarter of that to come up."""
REST_S = 30.0
"""So long one that failed is not tried again."""
_CLIENT_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)

Stage = Callable[[str], Awaitable[tuple[Lease, Path]]]
"""Brings a snapshot near and holds it there. Raises StorageError."""


@dataclass(eq=False)
class _Ahead:
    key: str
    starting: asyncio.Task[ForkedEngine]
    unclaimed: asyncio.TimerHandle | None = None
    leases: list[Lease] = field(default_factory=list)


class EnginesAhead:
    """One node's; one event loop. ``open`` before anything else."""

    def __init__(self, pool: PoolAddress, stage: Stage, count: Callable[[str, str], None] = lambda *_: None) -> None:
        """``count`` is told of each engine what became of it: ``claimed``, ``unclaimed`` or ``failed``."""
        self._pool = pool
        self._stage = stage
        self._count = count
        self._recipes: dict[str, Recipe] = {}
        self._ahead: dict[str, _Ahead] = {}
        self._rest_until_s: dict[str, float] = {}
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Listen to the node's replicas."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(str(ahead_path(self._pool)))
        self._listener.listen()
        self._begin(self._listen(self._listener))

    async def close(self) -> None:
        """End the engines, and listen no longer."""
        if self._listener is not None:
            self._listener.close()
            ahead_path(self._pool).unlink(missing_ok=True)
        for model_id in list(self._ahead):
            self._drop(model_id, "unclaimed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def known(self) -> dict[str, bool]:
        """Return by model whether an engine of it is ahead; without those of which nobody knows how they start."""
        return {model_id: model_id in self._ahead for model_id in self._recipes}

    def fork(self, model_id: str) -> bool:
        """Have an engine of a model ahead, for some time from now on; return whether there is or will be one."""
        recipe = self._recipes.get(model_id)
        if recipe is None or time.monotonic() < self._rest_until_s.get(model_id, 0.0):
            return False
        ahead = self._ahead.get(model_id)
        if ahead is not None and ahead.key != recipe.key:
            self._drop(model_id, "unclaimed")
            ahead = None
        if ahead is None:
            leases: list[Lease] = []
            starting = asyncio.get_running_loop().create_task(self._start(recipe, leases))
            ahead = self._ahead[model_id] = _Ahead(recipe.key, starting, leases=leases)
            starting.add_done_callback(lambda _: self._started(model_id, ahead))
            logger.info("forking an engine of %s ahead of its replica", model_id)
        if ahead.unclaimed is not None:
            ahead.unclaimed.cancel()
        ahead.unclaimed = asyncio.get_running_loop().call_later(KEEP_S, self._drop, model_id, "unclaimed")
        return True

    async def _start(self, recipe: Recipe, leases: list[Lease]) -> ForkedEngine:
        lease, snapshot = await self._stage(recipe.snapshot_id)
        leases.append(lease)
        engine = await ForkedEngine.ask(self._pool, recipe.model_id, recipe.surroundings)
        try:
            await engine.launch(EngineRequest(recipe.engine, str(snapshot)))
            await engine.serves()
        except BaseException:
            engine.hang_up()
            raise
        return engine

    def _started(self, model_id: str, ahead: _Ahead) -> None:
        if ahead.starting.cancelled():
            return
        error = ahead.starting.exception()
        if error is None:
            ahead.starting.result().when_gone(lambda: self._ended(model_id, ahead))
        else:
            if not isinstance(error, (DeploymentError, StorageError)):
                logger.error("an engine ahead of its replica", exc_info=error)
            logger.warning("no engine of %s ahead of its replica: %s", model_id, error)
            self._ended(model_id, ahead)

    def _ended(self, model_id: str, ahead: _Ahead) -> None:
        if self._ahead.get(model_id) is ahead:
            self._drop(model_id, "failed")

    def _drop(self, model_id: str, outcome: str) -> None:
        ahead = self._take(model_id)
        if ahead.starting.done() and not ahead.starting.cancelled() and ahead.starting.exception() is None:
            ahead.starting.result().hang_up()
        ahead.starting.cancel()
        self._forget(model_id, ahead, outcome)

    def _take(self, model_id: str) -> _Ahead:
        ahead = self._ahead.pop(model_id)
        if ahead.unclaimed is not None:
            ahead.unclaimed.cancel()
        return ahead

    def _forget(self, model_id: str, ahead: _Ahead, outcome: str) -> None:
        for lease in ahead.leases:
            lease.release()
        if outcome == "failed":
            self._rest_until_s[model_id] = time.monotonic() + REST_S
        logger.info("the engine of %s that was ahead of its replica: %s", model_id, outcome)
        self._count(model_id, outcome)

    async def _listen(self, listener: socket.socket) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            client.settimeout(_CLIENT_TIMEOUT_S)
            self._begin(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                asked = pickle.loads(await asyncio.to_thread(receive_frame, client))  # noqa: S301 - see recipe
            except (OSError, EOFError) as error:
                logger.info("a replica did not say what it wants: %s", error)
                return
            if isinstance(asked, Recipe):
                self._recipes[asked.model_id] = asked
            else:
                await self._answer(client, asked)

    async def _answer(self, client: socket.socket, claim: Claim) -> None:
        ahead = self._ahead.get(claim.model_id)
        if ahead is None or ahead.key != claim.key:
            self._give(client, None)
            return
        # From now on it is nobody else's.
        self._take(claim.model_id)
        engine = None
        try:
            with suppress(Exception):  # it has been told what it failed with
                engine = await ahead.starting
            self._give(client, engine)
        finally:
            if engine is not None:
                engine.let_go()
            self._forget(claim.model_id, ahead, "failed" if engine is None else "claimed")

    def _give(self, client: socket.socket, engine: ForkedEngine | None) -> None:
        try:
            answer_claim(client, engine)
        except OSError as error:
            logger.info("a replica has gone that asked for an engine: %s", error)

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __repr__(self) -> str:
        return f"<EnginesAhead {sorted(self._ahead)}>"
