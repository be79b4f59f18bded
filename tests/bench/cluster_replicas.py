"""Fifty real replicas: what Serve's controller works, and how soon a gateway knows that a replica has become busy.

The replicas are FlashServe's, in Serve, with engines that need no model. Twice, with the same requests: with the
replicas' own feed to the gateway, and beside it as Serve offers it, where the controller asks every replica each second
(`record_routing_stats`) and tells all routers. Each request is sent to a replica that has none, and takes two seconds;
the age of what a gateway knows is the time from sending it to knowing of it.

Usage: make bench-cluster-replicas, which runs Serve's router in the event loop that asks it, as a gateway does.
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from report import Result, Target, make_report, median_result, print_report, wide_console, write_report
from results_plot import write_picture

from app.catalogue import Catalogue
from app.entry import Entry
from app.fleet import Fleets
from app.streams import TokenStreams
from deployments.placements import PLACEMENTS
from deployments.wire import ReplicaNews, TokenDelta
from tests.bench import cluster_probe
from tests.bench.cluster_probe import MODEL, SPEC, TOKEN_TIME_S, AskedReplica, FakeReplica

NAME = "cluster-replicas"
FEED, SERVE = "feed", "Serve's controller"
TOKENS, PER_S, ASK_EVERY_S = 40, 5.0, 1.0
STARTED_WITHIN_S, KNOWN_WITHIN_S = 600.0, 30.0
MS = 1e3


@dataclass
class Measured:
    """Of one way: seconds from sending to knowing, and shares of a core that the controller worked."""

    age_s: list[float] = field(default_factory=list)
    unknown: int = 0
    idle_cores: float = 0.0
    busy_cores: float = 0.0


class Gateway:
    """What a gateway has of the pool: its feed, its fleet, and who has become busy since they were asked."""

    def __init__(self) -> None:
        self.fleets: Fleets | None = None
        self.streams = TokenStreams(self)
        self._awaited: dict[str, asyncio.Future[None]] = {}

    def on_deltas(self, deltas: list[TokenDelta]) -> None:
        """Drop the tokens."""

    def hear(self, news: ReplicaNews) -> None:
        """See ``NewsAudience.hear``."""
        assert self.fleets is not None
        self.fleets.hear(news)
        engine = news.engines.get(MODEL)
        if engine is not None and engine.in_hand:
            self.busy(news.replica_id)

    def lose(self, last: ReplicaNews, *, silently: bool) -> None:
        """See ``NewsAudience.lose``."""

    def busy(self, replica_id: str) -> None:
        """Take note that a replica has a request in hand."""
        awaited = self._awaited.pop(replica_id, None)
        if awaited is not None and not awaited.done():
            awaited.set_result(None)

    async def until_known(self, replica_id: str) -> float:
        """Seconds until that is known."""
        begin_s = time.monotonic()
        self._awaited[replica_id] = asyncio.get_running_loop().create_future()
        await asyncio.wait_for(self._awaited[replica_id], KNOWN_WITHIN_S)
        return time.monotonic() - begin_s


async def measure(way: str, replicas: int, seconds: float, directory: str) -> Measured:
    """Deploys, waits until all replicas are known, then an idle and a busy time."""
    catalogue = serve.deployment(Catalogue, name="Models", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
    kind = FakeReplica if way == FEED else AskedReplica
    router = "deployments.served_router.ServedReplicaRouter" if way == FEED else "tests.bench.cluster_probe.ToldRouter"
    pool = serve.deployment(
        kind,
        name="Engines",
        num_replicas=replicas,
        max_ongoing_requests=100,
        ray_actor_options={"num_cpus": 0},
        request_router_config=RequestRouterConfig(
            request_router_class=router, request_routing_stats_period_s=ASK_EVERY_S
        ),
    )
    app = pool.bind(catalogue.bind([Entry(SPEC, {}, "pool", {})], Path(directory)))
    handle = await asyncio.to_thread(serve.run, app, name=way.split("'", maxsplit=1)[0], route_prefix=None)
    gateway = Gateway()
    cluster_probe.on_busy = gateway.busy
    await gateway.streams.listen("127.0.0.1")
    gateway.fleets = Fleets({"pool": handle}, PLACEMENTS)
    if way == FEED:
        gateway.fleets.run(gateway.streams.reply_to)
    ids = await _replica_ids(handle, replicas)
    await asyncio.gather(*(handle.wake.remote({"model_id": MODEL, "place": _only(each)}) for each in ids))
    controller = _controller()
    found = Measured()
    found.idle_cores = await _cores_of(controller, asyncio.sleep(seconds))
    found.busy_cores = await _cores_of(controller, _ask(gateway, handle, ids, seconds, found))
    gateway.fleets.close()
    gateway.streams.close()
    await asyncio.to_thread(serve.shutdown)
    return found


async def _replica_ids(handle: Any, replicas: int) -> list[str]:
    # The handle's router knows them once it has been asked.
    await handle.describe.remote()
    async with asyncio.timeout(STARTED_WITHIN_S):
        while len(ids := PLACEMENTS.replica_ids(str(handle.deployment_id))) < replicas:  # noqa: ASYNC110 - Serve's
            await asyncio.sleep(0.1)
    return sorted(ids)


async def _ask(gateway: Gateway, handle: Any, ids: Sequence[str], seconds: float, found: Measured) -> None:
    """Send requests at random times, each to a replica without one."""
    rng, free = random.Random(8), set(ids)  # noqa: S311 - which replica hides nothing

    async def one(number: int, replica_id: str) -> None:
        stream_id = f"{number}"
        gateway.streams.expect(stream_id, gateway)
        ask = {
            "stream_id": stream_id, "model_id": MODEL, "prompt_token_ids": [1, 2, 3], "place": _only(replica_id),
            "sampling": {"max_tokens": TOKENS}, "reply_to": gateway.streams.reply_to,
        }  # fmt: skip
        knowing = asyncio.create_task(gateway.until_known(replica_id))
        await handle.generate.remote(ask)
        try:
            found.age_s.append(await knowing)
        except TimeoutError:
            found.unknown += 1
        # Until what is known of it is old again, it could be taken for busy with the request before.
        await asyncio.sleep(3 * ASK_EVERY_S)
        free.add(replica_id)

    begin_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        number = 0
        while time.monotonic() - begin_s < seconds:
            await asyncio.sleep(rng.expovariate(PER_S))
            if free:
                replica_id = rng.choice(sorted(free))
                free.discard(replica_id)
                group.create_task(one(number, replica_id))
                number += 1


def _only(replica_id: str) -> dict[str, Any]:
    return {"replica_id": replica_id, "only": True}


def _controller() -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if "ServeController" in " ".join(process.info["cmdline"] or []):
                return process
    raise LookupError("there is no Serve controller")


async def _cores_of(process: psutil.Process, doing: Any) -> float:
    """Cores that a process worked on the mean while something was done."""
    begin, begin_s = process.cpu_times(), time.monotonic()
    await doing
    end = process.cpu_times()
    return (end.user + end.system - begin.user - begin.system) / (time.monotonic() - begin_s)


def results(measured: dict[str, Measured]) -> list[Result]:
    """By way, and the feed's over Serve's."""
    found = []
    for way, each in measured.items():
        found.append(median_result(f"known after, by {way}", [age * MS for age in each.age_s], "ms"))
        p99_ms = float(np.quantile(each.age_s, 0.99)) * MS
        found.append(Result(f"known after, p99, by {way}", p99_ms, "ms", ()))
        found.append(Result(f"never known, by {way}", float(each.unknown), "requests", ()))
        found.append(Result(f"controller, idle, by {way}", each.idle_cores, "cores", ()))
        found.append(Result(f"controller, busy, by {way}", each.busy_cores, "cores", ()))
    feed, other = measured[FEED], measured[SERVE]
    age = statistics.median(feed.age_s) / statistics.median(other.age_s)
    found.append(Result("known after, ratio", age, "ratio", (), Target(1.0, "max"), SERVE))
    cores = feed.busy_cores / max(other.busy_cores, 1e-9)
    found.append(Result("controller, busy, ratio", cores, "ratio", (), Target(1.0, "max"), SERVE))
    return found


def main() -> None:
    """Runs the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="idle, and as long again busy, each way")
    options = parser.parse_args()
    console, measured = wide_console(), {}
    for way in (FEED, SERVE):
        console.print(f"{options.replicas} replicas, heard of by {way}")
        ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
        with tempfile.TemporaryDirectory() as directory:
            measured[way] = asyncio.run(measure(way, options.replicas, options.seconds, directory))
        ray.shutdown()
    notes = [
        (
            f"{options.replicas} replicas with engines that need no model, {PER_S:g} requests a second of "
            f"{TOKENS * TOKEN_TIME_S:g} s, all on one machine"
        )
    ]
    report = make_report(NAME, results(measured), notes)
    print_report(report)
    print(f"Written: {write_report(report)}, {write_picture(report)}")


if __name__ == "__main__":
    main()
