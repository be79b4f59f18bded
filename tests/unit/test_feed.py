"""Both ends of the token feed over real sockets."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app import streams as gateways_end
from app.streams import MISSED_HEARTBEATS, TokenStreams
from deployments.errors import FeedError
from deployments.feed import Feeds
from deployments.wire import ReplicaNews, TokenDelta
from tests.support.feeds import Collector


@pytest.fixture
async def streams() -> AsyncIterator[TokenStreams]:
    gateway = TokenStreams()
    await gateway.listen("127.0.0.1")
    yield gateway
    gateway.close()


async def test_deltas_of_one_turn_share_a_frame(streams: TokenStreams) -> None:
    collector, feeds = Collector(), Feeds()
    feed = await feeds.open(streams.reply_to)
    for stream_id in "abc":
        streams.expect(stream_id, collector)
        feed.send(TokenDelta(stream_id, [1]))
    await collector.until(lambda: collector.frames)
    assert [[delta.stream_id for delta in frame] for frame in collector.frames] == [["a", "b", "c"]]
    feeds.close()


async def test_a_frame_is_split_by_sink_and_what_nobody_expects_is_dropped(streams: TokenStreams) -> None:
    one, other, feeds = Collector(), Collector(), Feeds()
    streams.expect("a", one)
    streams.expect("b", other)
    feed = await feeds.open(streams.reply_to)
    for stream_id in ("a", "b", "nobody's", "a"):
        feed.send(TokenDelta(stream_id, [1]))
    await other.until(lambda: other.frames)
    assert one.tokens("a") == [1, 1]
    assert other.frames == [[TokenDelta("b", [1])]]
    feeds.close()


async def test_a_forgotten_stream_gets_nothing(streams: TokenStreams) -> None:
    collector, feeds = Collector(), Feeds()
    streams.expect("a", collector)
    streams.expect("b", collector)
    feed = await feeds.open(streams.reply_to)
    streams.forget("a")
    feed.send(TokenDelta("a", [1]))
    feed.send(TokenDelta("b", [2]))
    await collector.until(lambda: collector.frames)
    assert collector.tokens("a") == []
    feeds.close()


async def test_the_connection_is_opened_once_however_many_ask(streams: TokenStreams) -> None:
    feeds = Feeds()
    opened = await asyncio.gather(*(feeds.open(streams.reply_to) for _ in range(20)))
    assert len({id(feed) for feed in opened}) == 1
    feeds.close()


async def test_what_is_pending_leaves_before_the_feed_closes(streams: TokenStreams) -> None:
    collector, feeds = Collector(), Feeds()
    streams.expect("a", collector)
    (await feeds.open(streams.reply_to)).send(TokenDelta("a", [1], "length"))
    feeds.close()
    await collector.until(collector.finished)


async def test_a_gateway_that_goes_away_is_noticed_and_a_new_feed_can_be_opened(streams: TokenStreams) -> None:
    feeds, lost = Feeds(), asyncio.Event()
    feed = await feeds.open(streams.reply_to)
    collector = Collector()
    streams.expect("a", collector)
    feed.send(TokenDelta("a", [1]))
    await collector.until(lambda: collector.frames)
    feed.on_lost(lost.set)
    streams.close()
    async with asyncio.timeout(10):
        await lost.wait()
    with pytest.raises(FeedError):
        await feed.drain()
    await streams.listen("127.0.0.1")
    assert await feeds.open(streams.reply_to) is not feed
    feeds.close()


async def test_a_stranger_without_the_key_is_cut_off(streams: TokenStreams) -> None:
    collector, feeds, lost = Collector(), Feeds(), asyncio.Event()
    streams.expect("a", collector)
    feed = await feeds.open(streams.reply_to | {"key": "guessed"})
    feed.on_lost(lost.set)
    feed.send(TokenDelta("a", [1]))
    async with asyncio.timeout(10):
        await lost.wait()
    assert collector.frames == []


async def test_a_gateway_that_is_not_there_is_an_error_and_not_for_ever(streams: TokenStreams) -> None:
    feeds = Feeds()
    streams.close()
    with pytest.raises(FeedError, match="Connect"):
        await feeds.open(streams.reply_to)
    await streams.listen("127.0.0.1")
    assert not (await feeds.open(streams.reply_to)).lost
    feeds.close()


class Audience:
    """Counts news, and keeps who was lost and whether silently."""

    def __init__(self) -> None:
        self.heard = 0
        self.lost: list[tuple[str, bool]] = []
        self.changed = asyncio.Event()

    def hear(self, _: ReplicaNews) -> None:
        self.heard += 1
        self.changed.set()

    def lose(self, last: ReplicaNews, *, silently: bool) -> None:
        self.lost.append((last.replica_id, silently))
        self.changed.set()


def news_of(replica_id: str) -> ReplicaNews:
    return ReplicaNews("pool", replica_id, {}, [], 0)


@pytest.fixture
async def audience(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Audience, TokenStreams]]:
    """Of a gateway with a faster heart."""
    monkeypatch.setattr(gateways_end, "HEARTBEAT_S", 0.02)
    heard = Audience()
    gateway = TokenStreams(heard)
    await gateway.listen("127.0.0.1")
    yield heard, gateway
    gateway.close()


async def test_a_replica_that_falls_silent_is_lost(audience: tuple[Audience, TokenStreams]) -> None:
    heard, gateway = audience
    feeds, lost = Feeds(), asyncio.Event()
    feed = await feeds.open(gateway.reply_to)
    feed.on_lost(lost.set)
    feed.tell(news_of("silent"))
    async with asyncio.timeout(10):
        await lost.wait()
    assert heard.lost == [("silent", True)]


async def test_one_that_goes_on_or_ends_in_order_is_not(audience: tuple[Audience, TokenStreams]) -> None:
    heard, gateway = audience
    talking, ending, mute = Feeds(), Feeds(), Feeds()
    feed, other = await talking.open(gateway.reply_to), await ending.open(gateway.reply_to)
    # From which no news have come, none are missed.
    unheard_of = await mute.open(gateway.reply_to)
    other.tell(news_of("ending"))
    ending.close()
    async with asyncio.timeout(10):
        while heard.heard < 3 * MISSED_HEARTBEATS:
            feed.tell(news_of("talking"))
            await asyncio.sleep(gateways_end.HEARTBEAT_S)
    assert heard.lost == [("ending", False)]
    assert not unheard_of.lost
    talking.close()
    mute.close()
