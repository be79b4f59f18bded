"""The replicas of each pool as this gateway sees them, and the choice among them.

Covers: asking each replica for news, which come on the token feed; choosing by estimated time to first token; commands
and questions to all of them. Does not cover: the estimate (``deployments.estimate``), resolving the choice
(``deployments.router``). A gateway that knows nothing leaves the choice to Serve.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any, Literal

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from app.engine_states import gone, merged
from app.migration import ResumeCost
from app.prefixes import PrefixTable, blocks_of
from deployments.adapter_rows import adapter_key
from deployments.adapters import engine_name
from deployments.errors import DeploymentError
from deployments.estimate import STALE_S, PoolView
from deployments.health import check_goes_on
from deployments.placements import Placements
from deployments.types import EngineDescription, GenerateRequest, ModelCommand, Place, ReplyTo
from deployments.wire import ReplicaNews

logger = logging.getLogger(__name__)

_LOOK_PERIOD_S = 1.0


Command = Literal["wake", "sleep", "stop"]


class Fleet:
    """One pool; one event loop. ``run`` first."""

    def __init__(self, replicas: Any, placements: Placements, *, may_be_empty: bool = False) -> None:
        """``replicas`` is a Serve handle; ``may_be_empty`` tells whether to have none is as it should be."""
        self._may_be_empty = may_be_empty
        self._replicas = replicas
        self._placements = placements
        self._view = PoolView()
        self._prefixes = PrefixTable()
        # What was last heard of each model, for when there is no replica.
        self._described: dict[str, EngineDescription] = {}
        self._looking: asyncio.Task[None] | None = None
        # Those that have stopped to be heard of, and that Ray has not given up yet.
        self._silent: set[str] = set()

    @property
    def size(self) -> int:
        """How many replicas take requests; one before any is known, or while there is none yet."""
        return max(1, len(self._there()))

    def run(self, reply_to: ReplyTo) -> None:
        """Begin to ask replicas for news, to be sent to ``reply_to``."""
        self._looking = asyncio.get_running_loop().create_task(self._look_after(reply_to))

    def close(self) -> None:
        """Ask no more."""
        if self._looking is not None:
            self._looking.cancel()

    def check(self) -> None:
        """Raise what has ended the asking, if anything has."""
        check_goes_on(self._looking, "asking replicas how things stand")

    def hear(self, news: ReplicaNews) -> None:
        """Take what a replica says of itself."""
        self._silent.discard(news.replica_id)
        self._view.hear(news, time.monotonic())

    def lose(self, replica_id: str, *, silently: bool) -> None:
        """Expect nothing more of a replica whose connection has ended; ``silently`` nor that its calls will end."""
        self._view.lose(replica_id)
        if silently:
            self._silent.add(replica_id)
            self._placements.silent(replica_id)

    def lose_engine(self, replica_id: str | None, model_id: str) -> None:
        """Expect nothing of a replica's engine that has died until the replica says more."""
        self._view.lose_engine(replica_id or "", model_id)

    def place_for(self, ask: GenerateRequest, cost: ResumeCost) -> Place | None:
        """Return where a sequence would have its first token soonest; None to leave that to Serve.

        ``cost.per_token_s`` is what a token of the prompt costs that need not be computed.
        """
        if self.size < 2:  # noqa: PLR2004 - there is no choice
            return None
        model_id = ask["model_id"]
        adapter = ask.get("adapter")
        group = f"{model_id}:{engine_name(adapter) if adapter else ''}:{ask.get('cache_salt')}"
        blocks = blocks_of(group, ask["prompt_token_ids"])
        computed = self._prefixes.computed(blocks)
        saved_s = {replica_id: tokens * cost.per_token_s for replica_id, tokens in computed.items()}
        key = adapter_key(adapter["digest"]) if adapter else None
        replica_id = self._view.soonest(model_id, time.monotonic(), saved_s, key)
        if replica_id is None:
            return None
        self._view.send(replica_id, model_id, key)
        self._prefixes.sent(blocks, replica_id)
        return {"replica_id": replica_id}

    def elsewhere_s(self, model_id: str, replica_id: str | None) -> float | None:
        """Return how soon the best replica other than ``replica_id`` would serve a model; None if none is known."""
        return self._view.least_s(model_id, time.monotonic(), but=replica_id)

    async def describe(self) -> dict[str, EngineDescription]:
        """Return each model's engine: of several replicas', the one nearest to serving; cold where there need be none.

        Raises:
            RayError, RayServeException: no replica answers.
        """
        if self._may_be_empty and self._described and not self._there():
            # Asking would start one: whoever only looks must not keep a pool from having none.
            return {model_id: gone(engine) for model_id, engine in self._described.items()}
        told = await asyncio.gather(
            *(self._replicas.describe.remote({"place": place}) for place in self._everywhere()), return_exceptions=True
        )
        described = [each for each in told if not isinstance(each, BaseException)]
        if not described:
            raise next(error for error in told if isinstance(error, BaseException))
        self._described = merged(described)
        return self._described

    async def adapters(self) -> dict[str, set[str]]:
        """Return by model the names inside engines of the adapters that any of them has in memory.

        A replica that doesn't answer is taken to have none.
        """
        if self._may_be_empty and not self._there():
            return {}
        told = await asyncio.gather(
            *(self._replicas.adapters.remote({"place": place}) for place in self._everywhere()), return_exceptions=True
        )
        found: dict[str, set[str]] = {}
        for each in told:
            for model_id, names in each.items() if not isinstance(each, BaseException) else ():
                found.setdefault(model_id, set()).update(names)
        return found

    async def command(self, name: Command, model_id: str) -> None:
        """Wake a model where it serves soonest, or put it to sleep or end it everywhere.

        Raises:
            RayError, RayServeException, DeploymentError: as the replicas do.
        """
        places = self._everywhere()
        if name == "wake":
            soonest_id = self._view.soonest(model_id, time.monotonic(), {})
            places = [{"replica_id": soonest_id}] if soonest_id else [{}]
        method = getattr(self._replicas, name)
        commands: list[ModelCommand] = [{"model_id": model_id, "place": place} for place in places]
        await asyncio.gather(*(method.remote(command) for command in commands))

    def _everywhere(self) -> list[Place]:
        """Return a place for each replica that may answer; before any is known, for whichever Serve takes."""
        return [_only(replica_id) for replica_id in sorted(self._there() - self._silent)] or [{}]

    def _there(self) -> frozenset[str]:
        return self._placements.replica_ids(str(self._replicas.deployment_id))

    async def _look_after(self, reply_to: ReplyTo) -> None:
        while True:
            there = self._there()
            for left in set(self._view.ids()) - there:
                self._view.lose(left)
            self._silent &= there
            now_s = time.monotonic()
            silent = [replica_id for replica_id in there if self._view.is_silent(replica_id, now_s)]
            await asyncio.gather(*(self._ask_for_news(replica_id, reply_to) for replica_id in silent))
            await asyncio.sleep(_LOOK_PERIOD_S)

    async def _ask_for_news(self, replica_id: str, reply_to: ReplyTo) -> None:
        try:
            async with asyncio.timeout(STALE_S):
                await self._replicas.tell_news.remote({"reply_to": reply_to, "place": _only(replica_id)})
        except (TimeoutError, RayError, RayServeException, DeploymentError) as error:
            logger.info("replica %s gives no news: %s", replica_id, error)

    def __repr__(self) -> str:
        return f"<Fleet of {len(self._view)} replicas>"


def _only(replica_id: str) -> Place:
    return {"replica_id": replica_id, "only": True}


class Fleets:
    """The fleets of a gateway, by the names of their pools: the audience of its ``TokenStreams``."""

    def __init__(
        self, pools: Mapping[str, Any], placements: Placements, may_be_empty: Collection[str] = frozenset()
    ) -> None:
        """``pools`` are Serve handles; those named in ``may_be_empty`` may have no replica."""
        self._fleets = {
            name: Fleet(handle, placements, may_be_empty=name in may_be_empty) for name, handle in pools.items()
        }

    def of(self, pool: str) -> Fleet:
        """Return one pool's."""
        return self._fleets[pool]

    async def describe(self) -> dict[str, EngineDescription]:
        """See ``Fleet.describe``."""
        described: dict[str, EngineDescription] = {}
        for engines in await asyncio.gather(*(fleet.describe() for fleet in self._fleets.values())):
            described |= engines
        return described

    async def adapters(self) -> dict[str, set[str]]:
        """See ``Fleet.adapters``."""
        found: dict[str, set[str]] = {}
        for names in await asyncio.gather(*(fleet.adapters() for fleet in self._fleets.values())):
            found |= names
        return found

    def run(self, reply_to: ReplyTo) -> None:
        """See ``Fleet.run``."""
        for fleet in self._fleets.values():
            fleet.run(reply_to)

    def check(self) -> None:
        """See ``Fleet.check``."""
        for fleet in self._fleets.values():
            fleet.check()

    def close(self) -> None:
        """See ``Fleet.close``."""
        for fleet in self._fleets.values():
            fleet.close()

    def hear(self, news: ReplicaNews) -> None:
        """See ``streams.NewsAudience``."""
        if news.pool in self._fleets:
            self._fleets[news.pool].hear(news)

    def lose(self, last: ReplicaNews, *, silently: bool) -> None:
        """See ``streams.NewsAudience``."""
        if last.pool in self._fleets:
            self._fleets[last.pool].lose(last.replica_id, silently=silently)
