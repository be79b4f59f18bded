"""What a token costs on its way from replica to gateway: as an item of a Serve handle's stream, and on the feed.

A replica that computes nothing sends tokens in step, for one stream and for 16, once at an engine's pace and once as
fast as it goes: a handle's item for each token, a handle's item for all that accumulated since the last one, and the
token feed, which sends one frame for all streams of a step. Processor time is that of both ends together; a token's
delay is from being made to being read. The ways take turns, in an order that rotates.

Usage: make bench-feed
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import ray
from feed_plot import plot
from ray import serve
from report import RESULTS_DIR, Result, Target, make_report, median_result, print_report, wide_console, write_report

from app.streams import TokenStreams
from deployments.wire import TokenDelta
from tests.bench.feed_probe import Source

NAME = "feed"
EACH, GATHERED, FEED = "an item a token", "an item for what accumulated", "feed"
WAYS = (EACH, GATHERED, FEED)
STREAMS = (1, 16)
STEP_S, TOKENS, FAST_TOKENS = 0.04, 100, 400
MS, US = 1e3, 1e6


@dataclass(frozen=True)
class Sample:
    """Of one way, once: processor seconds a token at both ends, a token's median delay, tokens a second."""

    cpu_s: float
    delay_s: float
    per_s: float


class Reader:
    """A stream at the gateway's end of the feed."""

    def __init__(self, tokens: int) -> None:
        self.delays_s: list[float] = []
        self.ended = asyncio.get_running_loop().create_future()
        self._tokens = tokens

    def on_deltas(self, deltas: list[TokenDelta]) -> None:
        """See ``DeltaSink``."""
        for delta in deltas:
            self.take(delta.token_ids)

    def take(self, tokens: Sequence[int]) -> None:
        """Tokens are the times they were made at, in nanoseconds."""
        now = time.monotonic_ns()
        self.delays_s.extend((now - token) / 1e9 for token in tokens)
        if len(self.delays_s) == self._tokens:
            self.ended.set_result(None)


class Bench:
    """One replica, and this process as its gateway."""

    def __init__(self, handle: Any, replica_pid: int, streams: TokenStreams) -> None:
        self._handle = handle
        self._ends = (psutil.Process(), psutil.Process(replica_pid))
        self._streams = streams
        self._ids = 0

    async def measure(self, way: str, streams: int, tokens: int, step_s: float) -> Sample:
        """So many streams at once, until the last one has ended."""
        read: dict[str, Callable[[int, float], Awaitable[Reader]]] = {
            EACH: lambda *what: self._by_handle(self._handle.each, *what),
            GATHERED: lambda *what: self._by_handle(self._handle.gathered, *what),
            FEED: self._by_feed,
        }
        before_s, begin_s = self._cpu_s(), time.monotonic()
        readers = await asyncio.gather(*(read[way](tokens, step_s) for _ in range(streams)))
        took_s, cpu_s = time.monotonic() - begin_s, self._cpu_s() - before_s
        delays_s = [delay for reader in readers for delay in reader.delays_s]
        count = streams * tokens
        if len(delays_s) != count:
            message = f"{len(delays_s)} of {count} tokens came"
            raise RuntimeError(message)
        return Sample(cpu_s / count, statistics.median(delays_s), count / took_s)

    async def _by_handle(self, method: Any, tokens: int, step_s: float) -> Reader:
        reader = Reader(tokens)
        async for item in method.options(stream=True).remote(tokens, step_s):
            reader.take(item)
        return reader

    async def _by_feed(self, tokens: int, step_s: float) -> Reader:
        self._ids += 1
        reader, stream_id = Reader(tokens), str(self._ids)
        self._streams.expect(stream_id, reader)
        await self._handle.feed.remote(stream_id, self._streams.reply_to, tokens, step_s)
        await reader.ended
        self._streams.forget(stream_id)
        return reader

    def _cpu_s(self) -> float:
        times = [process.cpu_times() for process in self._ends]
        return sum(each.user + each.system for each in times)


Samples = dict[tuple[str, int, float], list[Sample]]


async def measure(rounds: int) -> Samples:
    """Deploys, one round that is not counted, then all rounds."""
    app = serve.deployment(Source, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}).bind()
    handle = await asyncio.to_thread(serve.run, app, route_prefix=None)
    streams = TokenStreams()
    await streams.listen("127.0.0.1")
    bench = Bench(handle, await handle.pid.remote(), streams)
    samples: Samples = {}
    cases = [(count, step_s, tokens) for count in STREAMS for step_s, tokens in ((STEP_S, TOKENS), (0.0, FAST_TOKENS))]
    for number in range(rounds + 1):
        for count, step_s, tokens in cases:
            for way in np.roll(WAYS, number):
                sample = await bench.measure(str(way), count, tokens, step_s)
                if number:
                    samples.setdefault((str(way), count, step_s), []).append(sample)
        wide_console().print(f"round {number} of {rounds}" if number else "warmed up")
    streams.close()
    await asyncio.to_thread(serve.shutdown)
    return samples


def results(samples: Samples) -> list[Result]:
    """Every case by way, and the feed's processor time beside an item a token."""
    found = []
    for (way, count, step_s), each in samples.items():
        case = f"{way}, {count} at once, " + ("an engine's pace" if step_s else "as fast as it goes")
        found.append(median_result(f"processor time a token, {case}", [one.cpu_s * US for one in each], "µs"))
        if step_s:
            found.append(median_result(f"delay of a token, {case}", [one.delay_s * MS for one in each], "ms"))
        else:
            found.append(median_result(f"rate, {case}", [one.per_s for one in each], "tokens/s"))
    for count in STREAMS:
        feed, item = samples[FEED, count, STEP_S], samples[EACH, count, STEP_S]
        ratios = [mine.cpu_s / other.cpu_s for mine, other in zip(feed, item, strict=True)]
        name = f"processor time a token on the feed, {count} at once"
        found.append(median_result(name, ratios, "ratio", Target(1.0, "max", strict=True), EACH))
    return found


def main() -> None:
    """Runs the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    samples = asyncio.run(measure(options.rounds))
    ray.shutdown()
    notes = [f"An engine's pace is a step each {STEP_S * MS:g} ms; processor time is of both ends together."]
    report = make_report(NAME, results(samples), notes)
    picture = RESULTS_DIR / f"{NAME}.png"
    plot({key: [one.cpu_s * US for one in each] for key, each in samples.items() if key[2]}, picture)
    print_report(report)
    print(f"Written: {write_report(report)}, {picture}")


if __name__ == "__main__":
    main()
