"""Streams under random kills of engine cores, workers, replicas and gateways, under migrations and scale-downs.

Every outcome is compared, piece for piece, with that of the same request undisturbed, in float32. It prints what it
counted and fails unless nothing was lost, doubled, changed, hung or left behind. Streams of a gateway that is killed
break, which is what is promised; they are asked for again and counted. The next kill comes when everything that the
last one hit has gone on: a request under which two engines end without a token between them is taken for one that ends
engines, which is promised too.

Usage: python tests/stress/streams.py [--streams 500] [--kills 100] [--migrations 100] [--gateway-kills 5]
       [--scale-downs 4]
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import psutil
from rich.console import Console

from tests.stress.counts import Counts, print_counts
from tests.support.conversations import CONVERSATIONS, Outcome, converse
from tests.support.service import CHAT_MODEL, Service, demo_args, deployed

VICTIMS = ("engine core", "worker", "replica")
STREAM_TIMEOUT_S = 240.0
# Streams that are to move may end or be hit before.
MIGRATION_TRIES = 10
# As long as a stream has to go on; on a busy machine it takes a replica and an engine that long to come.
SETTLE_S = 180.0
# By then nobody hands a request to what was killed, and what it had said has come.
NOTICED_S = 2.0
# A redeploy replaces all of the application, and a busy machine imports for all of it.
SCALE_S = 300.0
SCALE_DOWN = "scale down"
COUNT_PERIOD_S = 5.0
# About as long as an engine takes to start.
AWAKE_AFTER_S = 4.0
# Ray collects metrics this often.
METRICS_LAG_S = 12.0
# A service counts what has moved, Ray collects that, and this run looks at it: until then it would order too many.
MOVE_PERIOD_S = (10.0, 20.0)
TELL_PERIOD_S = 60.0
SEEDS = 3
LOGS_DIR = Path("bench-results/stress-logs")


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    streams: int
    kills: int
    migrations: int
    gateway_kills: int = 0
    scale_downs: int = 0
    # Of the pool, undisturbed.
    replicas: int = 1
    at_once: int = 10
    max_tokens: int = 80
    seed: int = 0
    # The third engine in a row that ends sooner than this after its start has its model given up for a while.
    rest_s: float = 11.0

    def disturbances(self) -> int:
        return self.kills + self.gateway_kills + self.scale_downs


@dataclass(eq=False)
class Asked:
    """A request under way, and which of its choices have not gone on since the last kill."""

    choices: int
    waiting: set[int] = field(default_factory=set)


class Stress:
    """One run against a service that is up."""

    def __init__(self, service: Service, plan: Plan, victims: Sequence[str] = VICTIMS) -> None:
        self._service = service
        self._plan = plan
        self._victims = victims
        self._random = random.Random(plan.seed)  # noqa: S311
        self.counts = Counts()
        self._expected: dict[tuple[str, int], Outcome] = {}
        self._gateway_kills = 0
        self._killed_s = -math.inf
        self._is_gateway_down = False
        self._under_way: list[Asked] = []
        self._began = asyncio.Event()

    async def run(self) -> Counts:
        begin_s = time.monotonic()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self._service.url, timeout=STREAM_TIMEOUT_S, limits=limits) as http:
            # The service answers once the first of them does.
            await self._until(lambda engines: engines >= self._plan.replicas)
            requests = [(kind, seed) for seed in range(SEEDS) for kind in CONVERSATIONS][: self._plan.streams]
            outcomes = await asyncio.gather(*(self._ask(http, *request) for request in requests))
            self._expected = dict(zip(requests, outcomes, strict=True))
            self._check_undisturbed()
            counting = [asyncio.ensure_future(self._count_moves(http)), asyncio.ensure_future(self._tell())]
            disturbing = [asyncio.ensure_future(self._kill_all(http)), asyncio.ensure_future(self._migrate_all(http))]
            places = asyncio.Semaphore(self._plan.at_once)
            await asyncio.gather(
                *(self._stream(http, requests[i % len(requests)], places) for i in range(self._plan.streams))
            )
            # Streams may end sooner than everything planned for them has happened.
            extra = 0
            while not all(task.done() for task in disturbing):
                await self._stream(http, requests[extra % len(requests)], places)
                extra += 1
            await asyncio.gather(*disturbing)
            await self._look_for_leftovers(http)
            for task in counting:
                task.cancel()
        self.counts.seconds = time.monotonic() - begin_s
        return self.counts

    def _check_undisturbed(self) -> None:
        """Raise AssertionError if what is expected isn't what was asked for."""
        for (kind, seed), outcome in self._expected.items():
            assert outcome.error is None, (kind, seed, outcome)
            assert set(outcome.written) == set(range(CONVERSATIONS[kind][1].get("n", 1))), (kind, outcome)
            if kind == "greedy":
                assert outcome.usage is not None
                assert outcome.usage["completion_tokens"] == self._plan.max_tokens

    async def _ask(self, http: httpx.AsyncClient, kind: str, seed: int) -> Outcome:
        asked = Asked(CONVERSATIONS[kind][1].get("n", 1))
        if time.monotonic() - self._killed_s < NOTICED_S:
            # It may be given to what has just been killed.
            asked.waiting = set(range(asked.choices))

        def went_on(chunk: dict[str, Any]) -> None:
            # What comes sooner may have been on its way already when the last one was killed.
            if time.monotonic() - self._killed_s > NOTICED_S:
                asked.waiting -= {choice["index"] for choice in chunk.get("choices", ()) if says_something(choice)}

        self._under_way.append(asked)
        self._began.set()
        try:
            return await converse(http, kind, max_tokens=self._plan.max_tokens, seed=seed, on_chunk=went_on)
        finally:
            self._under_way.remove(asked)

    async def _stream(self, http: httpx.AsyncClient, request: tuple[str, int], places: asyncio.Semaphore) -> None:
        async with places:
            while True:
                gateway_kills, is_gateway_down = self._gateway_kills, self._is_gateway_down
                try:
                    async with asyncio.timeout(STREAM_TIMEOUT_S):
                        outcome = await self._ask(http, *request)
                except TimeoutError:
                    self.counts.hung += 1
                    self.counts.faults.append(f"{request}: no end within {STREAM_TIMEOUT_S:.0f} s")
                    return
                except (httpx.HTTPError, json.JSONDecodeError) as error:
                    outcome = Outcome(error=repr(error))
                is_broken = is_gateway_down or gateway_kills != self._gateway_kills
                if outcome != self._expected[request] and is_broken:
                    self.counts.broken_with_their_gateway += 1
                    await self._settled(http)
                    continue
                self.counts.compare(str(request), outcome, self._expected[request])
                return

    async def _kill_all(self, http: httpx.AsyncClient) -> None:
        victims = [self._victims[i % len(self._victims)] for i in range(self._plan.kills)]
        victims += ["gateway"] * self._plan.gateway_kills + [SCALE_DOWN] * self._plan.scale_downs
        self._random.shuffle(victims)
        for victim in victims:
            await asyncio.sleep(self._random.uniform(0.0, 1.0))
            await self._busy()
            if victim == SCALE_DOWN:
                await self._scale_down(http)
                continue
            process = await self._somebody(victim)
            if process is None:
                self.counts.faults.append(f"there was no {victim} to kill within {SETTLE_S:.0f} s")
                continue
            if victim == "gateway":
                self._gateway_kills += 1
                self._is_gateway_down = True
            print(f"{time.strftime('%X')} kills {victim}, process {process.pid}", flush=True)
            process.kill()
            self._killed_s = time.monotonic()
            for asked in self._under_way:
                asked.waiting = set(range(asked.choices))
            self.counts.kills[victim] += 1
            if not await self._settled(http):
                self.counts.faults.append(f"{time.strftime('%X')} not all has gone on {SETTLE_S:.0f} s after that kill")
            self._is_gateway_down = False

    async def _scale_down(self, http: httpx.AsyncClient) -> None:
        """Deploy with one replica less, and with as many as before: the gateway is replaced, too."""
        for replicas in (self._plan.replicas - 1, self._plan.replicas):
            await asyncio.to_thread(self._service.deploy, stress_args(replicas))
            if not await self._until(replicas.__eq__):
                self.counts.faults.append(f"there were no {replicas} engines within {SCALE_S:.0f} s")
                return
            await self._settled(http)
        self.counts.scale_downs += 1

    async def _until(self, are_right: Callable[[int], bool]) -> bool:
        """Wait for a number of engines; return whether it came to be."""
        deadline_s = time.monotonic() + SCALE_S
        while not are_right(len(self._workers(AWAKE_AFTER_S))):
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(0.5)
        return True

    async def _busy(self) -> None:
        while not self._under_way:
            self._began.clear()
            await self._began.wait()

    async def _somebody(self, victim: str) -> psutil.Process | None:
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            process = self._choose(victim)
            if process is not None or time.monotonic() > deadline_s:
                return process
            await asyncio.sleep(0.1)

    def _choose(self, victim: str) -> psutil.Process | None:
        if victim == "gateway":
            found = self._service.processes("flashserve:Gateway")
        elif victim == "replica":
            found = self._service.processes("Engines-default")
        else:
            workers = self._workers(self._plan.rest_s)
            found = workers if victim == "worker" else [worker.parent() for worker in workers]
        return self._random.choice(found) if found else None

    def _workers(self, least_age_s: float) -> list[psutil.Process]:
        workers, now_s = self._service.processes("VLLM::Worker"), time.time()
        return [worker for worker in workers if _age_s(worker, now_s) > least_age_s]

    async def _settled(self, http: httpx.AsyncClient) -> bool:
        """Wait until every stream has gone on, and there is an engine that is old enough to be killed."""
        deadline_s = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline_s:
            if self._workers(self._plan.rest_s) and not any(asked.waiting for asked in self._under_way):
                try:
                    if (await http.get("/health", timeout=10)).is_success:
                        return True
                except httpx.HTTPError:
                    pass
            await asyncio.sleep(0.1)
        return False

    async def _migrate_all(self, http: httpx.AsyncClient) -> None:
        """Order moves all along the run, so that they meet every kind of kill."""
        while self.counts.moves_done < self._plan.migrations:
            if self.counts.moves_asked_for >= self._plan.migrations * MIGRATION_TRIES:
                break
            await asyncio.sleep(self._random.uniform(*MOVE_PERIOD_S))
            await self._busy()
            if self.counts.moves_done > self._plan.migrations * self._part_disturbed():
                continue
            if len(self._workers(AWAKE_AFTER_S)) < self._plan.replicas:
                # There is nowhere to move to for now.
                continue
            try:
                answer = (await http.post("/admin/migrate", json={"model": CHAT_MODEL}, timeout=30)).json()
            except (httpx.HTTPError, json.JSONDecodeError):
                continue
            self.counts.moves_asked_for += answer.get("moving", 0)

    def _part_disturbed(self) -> float:
        """Return how much of what is planned to be killed and scaled down has been."""
        done, wanted = self.counts.kills.total() + self.counts.scale_downs, self._plan.disturbances()
        return done / wanted if wanted else 1.0

    async def _look_for_leftovers(self, http: httpx.AsyncClient) -> None:
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            left = await self._in_hand(http)
            if not left or time.monotonic() > deadline_s:
                break
            await asyncio.sleep(0.5)
        self.counts.left_behind = left
        await asyncio.sleep(METRICS_LAG_S)
        for name in ("ray_vllm_num_requests_running", "ray_vllm_num_requests_waiting"):
            self.counts.left_in_metrics += int(sum((await self._metric(http, name)).values()))

    async def _count_moves(self, http: httpx.AsyncClient) -> None:
        """Add up the gateways' counters: one that is killed takes along what it had counted since the last look."""
        seen: dict[str, float] = {}
        while True:
            with contextlib.suppress(httpx.HTTPError):
                for labels, value in (await self._metric(http, "ray_flashserve_stream_moves_total")).items():
                    before = seen.get(labels, 0.0)
                    self.counts.moves_done += int(value - before if value >= before else value)
                    seen[labels] = value
            await asyncio.sleep(COUNT_PERIOD_S)

    async def _tell(self) -> None:
        """A line a minute on what has happened, for it takes long, and every fault at the next one."""
        begin_s, faults_told = time.monotonic(), 0
        while True:
            await asyncio.sleep(TELL_PERIOD_S)
            counts, plan = self.counts, self._plan
            told = {
                "streams as undisturbed": (counts.equal, plan.streams),
                "kills": (counts.kills.total(), plan.kills + plan.gateway_kills),
                "moves": (counts.moves_done, plan.migrations),
                "scale-downs": (counts.scale_downs, plan.scale_downs),
            }
            parts = [f"{done} of {wanted} {name}" for name, (done, wanted) in told.items()]
            print(f"{(time.monotonic() - begin_s) / 60:.0f} min:", ", ".join(parts), flush=True)
            for fault in counts.faults[faults_told:]:
                print(f"  {fault}", flush=True)
            faults_told = len(counts.faults)

    async def _in_hand(self, http: httpx.AsyncClient) -> int:
        """Sequences that any replica still has, in its engine or waiting for it."""
        models = (await http.get("/admin/models")).json()["models"]
        return sum(engine["requests"] + engine["waiting"] for engine in models.values())

    async def _metric(self, http: httpx.AsyncClient, name: str) -> dict[str, float]:
        """A metric's values by their labels."""
        lines = [line.rpartition(" ") for line in (await http.get("/metrics")).text.splitlines()]
        return {labels: float(value) for labels, _, value in lines if labels.startswith(f"{name}{{")}


def _age_s(process: psutil.Process, now_s: float) -> float:
    try:
        return now_s - process.create_time()
    except psutil.Error:
        return 0.0


def says_something(choice: dict[str, Any]) -> bool:
    """Tell whether there is a token in it: of a chat, all choices tell their role when the first one has one."""
    delta = choice.get("delta", {})
    return bool(choice.get("text") or delta.get("content") or delta.get("tool_calls") or choice.get("finish_reason"))


def stress_args(replicas: int) -> dict[str, Any]:
    args = demo_args(pools=[{"name": "default", "min_replicas": replicas, "max_replicas": replicas}])
    args["models"] = args["models"][:1]
    return args


def keep_logs(logs: Path) -> Path:
    """Copy them to where they outlive the service, in place of those of the run before."""
    shutil.rmtree(LOGS_DIR, ignore_errors=True)
    # Some are renamed while they are copied.
    with contextlib.suppress(shutil.Error):
        shutil.copytree(logs, LOGS_DIR, symlinks=True)
    return LOGS_DIR


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("streams", 500), ("kills", 100), ("migrations", 100), ("gateway-kills", 5), ("scale-downs", 4),
        ("at-once", 10), ("max-tokens", 80), ("seed", 0), ("replicas", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = vars(parser.parse_args())
    with deployed(stress_args(arguments["replicas"])) as service:
        stress = Stress(service, Plan(**arguments))
        try:
            asyncio.run(stress.run())
        finally:
            # Also what was found until it was broken off.
            print_counts(stress.counts, Console())
            if not stress.counts.good() or stress.counts.faults:
                print(f"The service's logs are kept in {keep_logs(service.logs)}")
    return 0 if stress.counts.good() else 1


if __name__ == "__main__":
    raise SystemExit(main())
