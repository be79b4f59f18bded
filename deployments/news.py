"""What a replica tells gateways of itself, unasked once they have asked: who is awake, what it takes, how busy it is.

Covers: whom to tell and when, only what has changed. Does not cover: what gateways conclude (``estimate``), the format
(``wire``).
"""

import asyncio
import contextlib
from dataclasses import dataclass

from deployments.adapters import AdapterPlaces
from deployments.engine_view import EngineView
from deployments.errors import EngineDiedError
from deployments.feed import GatewayFeed
from deployments.lifecycle import EngineLifecycle
from deployments.residents import Residents
from deployments.types import EngineDescription
from deployments.wire import HEARTBEAT_S, EngineNews, ReplicaNews

# Engines are asked for their adapters this often, if any was used.
LOOK_S = 1.0
# Changes that come together are told together.
GATHER_S = 0.05
_SMOOTHING = 0.3


@dataclass
class _FirstTokens:
    """How long first tokens take lately, and how many sequences there were meanwhile."""

    seconds: float = 0.0
    load: float = 0.0

    def measured(self, seconds: float, load: int) -> None:
        share = _SMOOTHING if self.seconds else 1.0
        self.seconds += share * (seconds - self.seconds)
        self.load += share * (load - self.load)


class Newsroom:
    """One replica's; one event loop. ``run`` first."""

    def __init__(self, pool: str, replica_id: str, residents: Residents) -> None:
        self._pool = pool
        self._replica_id = replica_id
        self._residents = residents
        self._first_tokens: dict[str, _FirstTokens] = {}
        # What each gateway has been told.
        self._told: dict[GatewayFeed, dict[str, EngineNews]] = {}
        self._places: dict[str, AdapterPlaces] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def run(self) -> None:
        """Begin to tell."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._tell_all()), loop.create_task(self._look_at_adapters())]

    def close(self) -> None:
        """Tell no more."""
        for task in self._tasks:
            task.cancel()

    def tell(self, feed: GatewayFeed) -> None:
        """Tell this gateway from now on, beginning with everything."""
        self._told[feed] = {}
        self._tell(feed)

    def first_token(self, model_id: str, seconds: float, load: int) -> None:
        """Take a measurement: a first token came so long after its sequence was admitted, beside ``load`` others."""
        self._first_tokens.setdefault(model_id, _FirstTokens()).measured(seconds, load)

    async def _tell_all(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._residents.changed.wait()
            await asyncio.sleep(GATHER_S)
            self._residents.changed.clear()
            for feed in list(self._told):
                if feed.lost:
                    del self._told[feed]
                else:
                    self._tell(feed)

    async def _look_at_adapters(self) -> None:
        # Beside the telling: an engine that computes answers only after its step.
        while True:
            found = {name: await _places_of(life) for name, life in self._residents.with_adapters().items()}
            if found != self._places:
                self._places = found
                self._residents.changed.set()
            await asyncio.sleep(LOOK_S)

    def _tell(self, feed: GatewayFeed) -> None:
        told, now = self._told[feed], self._now()
        changed = {model_id: news for model_id, news in now.items() if not news.same_as(told.get(model_id))}
        gone = [model_id for model_id in told if model_id not in now]
        feed.tell(ReplicaNews(self._pool, self._replica_id, changed, gone, self._residents.room_bytes()))
        self._told[feed] = now

    def _now(self) -> dict[str, EngineNews]:
        described = self._residents.describe()
        nothing = _FirstTokens()
        return {
            view.model_id: _news(
                view,
                described[view.model_id],
                self._first_tokens.get(view.model_id, nothing),
                self._places.get(view.model_id),
            )
            for view in self._residents.views()
        }

    def __repr__(self) -> str:
        return f"<Newsroom of {self._replica_id}, {len(self._told)} gateways>"


async def _places_of(life: EngineLifecycle) -> AdapterPlaces:
    try:
        return await life.adapter_places()
    except EngineDiedError:
        return AdapterPlaces()


def _news(
    view: EngineView, described: EngineDescription, first_tokens: _FirstTokens, places: AdapterPlaces | None
) -> EngineNews:
    return EngineNews(
        state=view.state,
        age_s=described["since_s"],
        start_s=view.start_s,
        wake_s=view.wake_s,
        first_token_s=first_tokens.seconds,
        load=round(first_tokens.load),
        in_hand=described["requests"] + described["waiting"],
        needs_bytes=view.awake_bytes - view.held_bytes,
        adapters=None if places is None else places.news(),
    )
