"""What decisions cost as a cluster grows: a gateway's choice of a replica, the plan, and a day's replay. No Ray, no
engines: the code that decides, on made-up news, in processor time of one core; replays by the clock, on all cores.

A cluster of size n is n replicas of one pool, each of which may host all of n models, with ten adapters a model; a
replica has its own model awake, a few asleep and the others cold. Of a choice everything is counted that the gateway
does for it: finding what the request's name means, the prefixes it has sent before, the estimates for all replicas, and
Serve's router taking the one that was chosen. Replicas' news come in between, one for each choice, and are measured on
their own.

The replay is that of `flashserve replay`. Its trace is made from a recorded day of 42 functions: as many series as
models, each one of the recorded, turned around the day by an offset of its own (fixed seed), so that gaps and bursts
are real and only their coming together is not. The replay knows no limit on GPUs: how many there were on the mean is
what it came to. The full size takes minutes and is replayed with `--full`.

Usage: python tests/bench/cluster_decisions.py [--full]
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cluster_decisions_plot import plot
from report import RESULTS_DIR, Result, Target, make_report, median_result, print_report, wide_console, write_report

from app.fleet import Fleet
from app.migration import ResumeCost
from app.names import NameTable, target_of
from autoscaler.config import AutoscalingConfig
from autoscaler.foretold import foretell
from autoscaler.layers import PROFILES
from autoscaler.planner import Hosted, Planner
from autoscaler.policies import POLICIES, Known, gaps_of
from autoscaler.replay_jobs import Work, replay_on
from autoscaler.reports import EngineReport, ReplicaReport
from autoscaler.traces import Arrivals, Service, Trace, read_trace
from autoscaler.types import Count
from deployments.adapter_rows import adapter_key
from deployments.fitted_line import FittedLine
from deployments.placements import Placements
from deployments.router import two_of
from deployments.types import AdapterSpec, GenerateRequest, ModelSpec
from deployments.wire import AdapterNews, EngineNews, ReplicaNews

NAME = "cluster-decisions"
SIZES = (10, 100, 1000)
ADAPTERS, PROMPT_TOKENS, SLOTS = 10, 512, 8
CHOICES, TICKS = 3000, 10
REPLAYED, WHOLE = (20, 200), 2000
TRACE = Path(__file__).parents[1] / "data" / "traces" / "azure_functions_2019_day.csv.gz"
DAY_S, SERVICE_S, LEARN = 86_400.0, 9.0, 0.65
CHOICE, PLAN, REPLAY = Target(1.0, "max"), Target(1.0, "max"), Target(600.0, "max")
JOBS = os.cpu_count() or 1
ANY_COST = ResumeCost(FittedLine(0.05, 0.0001))

Curve = dict[int, float]


def main() -> int:
    """Runs the bench; returns 0 however the targets turn out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"replay {WHOLE} models as well, which takes minutes")
    options = parser.parse_args()
    results: list[Result] = []
    curves: dict[str, Curve] = {}
    console, begun_s = wide_console(), time.monotonic()

    def progress(what: str) -> None:
        console.print(f"{time.monotonic() - begun_s:5.0f} s  {what}", highlight=False)

    for size in SIZES:
        progress(f"choices and plans of {size:,} replicas")
        target = size == SIZES[-1]
        choices_ms, news_ms = choosing_ms(size)
        shape = f"{size:,} replicas x {size:,} models x {size * ADAPTERS:,} adapters"
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            value = float(np.quantile(choices_ms, share))
            goal = CHOICE if target and name == "p99" else None
            results.append(Result(f"choice {name}, {shape}", value, "ms", tuple(choices_ms), goal))
            curves.setdefault(f"choice {name}, ms", {})[size] = value
        results.append(median_result(f"one replica's news, {shape}", news_ms, "ms"))
        first_s, ticks_s, hearing_s = planning_s(size)
        results.append(Result(f"plan, first, {shape}", first_s, "s", (first_s,), PLAN if target else None))
        results.append(median_result(f"plan, each second, {shape}", ticks_s, "s", PLAN if target else None))
        results.append(median_result(f"a second's reports of all replicas, {shape}", hearing_s, "s"))
        curves.setdefault("plan, first, s", {})[size] = first_s
        curves.setdefault("plan, each second, s", {})[size] = float(np.median(ticks_s))
    for models in (*REPLAYED, WHOLE) if options.full else REPLAYED:
        progress(f"a day of {models:,} models")
        took_s, gpus, requests = replaying_s(models)
        name = f"replay of a day, {models:,} models, {requests:,} requests, {gpus:.0f} GPUs on the mean"
        results.append(Result(name, took_s, "s", (took_s,), REPLAY if models == WHOLE else None))
        curves.setdefault("replay of a day, s", {})[models] = took_s
    report = make_report(NAME, results, notes())
    write_report(report)
    plot(curves, RESULTS_DIR / f"{NAME}.png")
    print_report(report)
    return 0


def notes() -> Iterator[str]:
    """What the reader needs beside the numbers."""
    yield "choices and plans: processor time of one thread, which a gateway shares with all else that it does"
    yield f"replays: by the clock, on {JOBS} cores"
    yield f"prompts of {PROMPT_TOKENS} tokens; the replay with profile gpu-7b, {SERVICE_S:g} s a request, {SLOTS} slots"


def choosing_ms(size: int) -> tuple[list[float], list[float]]:
    """Returns what each choice took, and each hearing of a replica's news."""
    chance = random.Random(size)  # noqa: S311 - the same every time
    models = [_model(number) for number in range(size)]
    replica_ids = [f"replica{number:05d}" for number in range(size)]
    names = NameTable(models)
    adapters = {target_of(spec.id, adapter): adapter for spec in models for adapter in spec.adapters}
    placements = Placements()
    placements.replicas("pool", replica_ids)
    fleet = Fleet(_Pool(), placements)
    for number, replica_id in enumerate(replica_ids):
        engines = {
            spec.id: _news(_state(number, index, size, chance), chance, spec) for index, spec in enumerate(models)
        }
        fleet.hear(ReplicaNews("pool", replica_id, engines, [], chance.randrange(20)))
    prompts = [[chance.randrange(30_000) for _ in range(PROMPT_TOKENS)] for _ in range(50)]
    choices_ms, news_ms = [], []
    for number in range(CHOICES):
        name = f"m{chance.randrange(size)}:a{chance.randrange(ADAPTERS)}"
        prompt = [*chance.choice(prompts)[: chance.randrange(PROMPT_TOKENS)], *chance.choice(prompts)][:PROMPT_TOKENS]
        choices_ms.append(_ms(lambda: _choose(name, prompt, str(number), names, adapters, fleet, placements)))  # noqa: B023
        own = number % size
        news = ReplicaNews(
            "pool", replica_ids[own], {f"m{own}": _news("awake", chance, models[own])}, [], chance.randrange(20)
        )
        news_ms.append(_ms(lambda: fleet.hear(news)))  # noqa: B023
    return choices_ms[CHOICES // 10 :], news_ms[CHOICES // 10 :]


def _choose(  # noqa: PLR0913, PLR0917 - what a gateway has at hand
    name: str,
    prompt: list[int],
    attempt_id: str,
    names: NameTable,
    adapters: Mapping[Any, AdapterSpec],
    fleet: Fleet,
    placements: Placements,
) -> None:
    target = names.resolve(name)
    adapter = adapters[target]
    ask: GenerateRequest = {
        "stream_id": attempt_id,
        "model_id": target.model_id,
        "prompt_token_ids": prompt,
        "sampling": {},
        "reply_to": {"host": "", "port": 0, "key": ""},
        "adapter": {"id": adapter.id, "path": adapter.path, "digest": adapter.digest},
    }
    placements.watch(attempt_id, target.model_id, lambda: None)
    place = fleet.place_for(ask, ANY_COST)
    replica_id = (place or {}).get("replica_id") or ""
    two_of(REPLICAS[: fleet.size], {replica_id}, str)
    placements.placed(attempt_id, replica_id)
    placements.forget(attempt_id)


def planning_s(size: int) -> tuple[float, list[float], list[float]]:
    """Returns what the first plan took, each one after it, and the hearing of what changed on all replicas."""
    chance = random.Random(size)  # noqa: S311 - the same every time
    planner = Planner(AutoscalingConfig())
    models = [f"m{number}" for number in range(size)]
    planner.serves({model: Hosted("pool", SLOTS) for model in models})
    for at_s in range(0, 3600, 60):
        planner.learn([Count(model, float(at_s + number % 37), 3) for number, model in enumerate(models)])
    planner.expected = dict.fromkeys(models, 0.05)
    planner.upper = {model: [0.1] * 60 for model in models}
    for number in range(size):
        engines = {model: _report(_state(number, index, size, chance)) for index, model in enumerate(models)}
        planner.hear(ReplicaReport(f"r{number}", "pool", engines), 3600.0)
    first_s = _ms(lambda: planner.tick(3600.0)) / 1000
    ticks_s, hearing_s = [], []
    for second in range(1, TICKS + 1):
        now_s = 3600.0 + second
        planner.learn([Count(model, now_s, 3) for index, model in enumerate(models) if index % 60 == second])
        reports = [
            ReplicaReport(f"r{number}", "pool", {f"m{number}": _report("awake", served=1)}, is_change=True)
            for number in range(size)
        ]
        hearing_s.append(_ms(lambda: [planner.hear(report, now_s) for report in reports]) / 1000)  # noqa: B023
        ticks_s.append(_ms(lambda: planner.tick(now_s)) / 1000)  # noqa: B023
    return first_s, ticks_s, hearing_s


def replaying_s(models: int) -> tuple[float, float, int]:
    """Returns how long a day's replay took by the clock, how many GPUs were taken on the mean, and the requests."""
    trace = day_of(models, read_trace(TRACE, Service(fixed_s=SERVICE_S)))
    begin_s = LEARN * DAY_S
    begun_s = time.monotonic()
    known = Known(gaps_of(trace, begin_s), foretell(trace))
    work = Work("ours", POLICIES["ours"].default, known, PROFILES["gpu-7b"], SLOTS, begin_s)
    outcome = replay_on(JOBS, work, trace)
    return time.monotonic() - begun_s, outcome.total_s / (DAY_S - begin_s), sum(len(e.at_s) for e in trace.values())


def day_of(models: int, recorded: Trace) -> Trace:
    """Returns a day of so many series: the recorded ones by turns, each turned around the day by a drawn offset."""
    rng = np.random.default_rng(0)
    sources: Sequence[Arrivals] = list(recorded.values())
    made = {}
    for number in range(models):
        source = sources[number % len(sources)]
        at_s = (source.at_s + rng.uniform(0.0, DAY_S)) % DAY_S
        order = np.argsort(at_s, kind="stable")
        made[f"m{number:04d}"] = Arrivals(at_s[order], source.service_s[order])
    return made


class _Pool:
    deployment_id = "pool"


KEYS: dict[str, list[int]] = {}
REPLICAS = [f"replica{number:05d}" for number in range(SIZES[-1])]


def _model(number: int) -> ModelSpec:
    digests = [f"{number * ADAPTERS + index:064x}" for index in range(ADAPTERS)]
    adapters = tuple(AdapterSpec(f"a{index}", f"/a/{index}", digest) for index, digest in enumerate(digests))
    KEYS[f"m{number}"] = [adapter_key(digest) for digest in digests]
    return ModelSpec(f"m{number}", "", lora_enabled=True, adapters=adapters)


def _state(replica: int, model: int, size: int, chance: random.Random) -> str:
    if replica == model:
        return "awake"
    return "asleep" if chance.random() < 4 / size else "cold"


def _news(state: str, chance: random.Random, spec: ModelSpec) -> EngineNews:
    in_hand = chance.randrange(SLOTS) if state == "awake" else 0
    # Where the model is awake its adapters are in dram, some of them nearer; elsewhere replicas don't say.
    keys = KEYS[spec.id] if state == "awake" else []
    near = chance.sample(keys, 4) if keys else []
    adapters = AdapterNews(0.002, 0.01, 0.1, near[:2], near[2:], [key for key in keys if key not in near])
    return EngineNews(state, 3.0, 8.0 + chance.random(), 0.5, 0.1, 2, in_hand, 0 if state == "awake" else 10, adapters)


def _report(state: str, served: int = 0) -> EngineReport:
    return EngineReport(state, int(state == "awake"), 0, 0.4, 3.0, served=served, served_s=2.0)


def _ms(work: Callable[[], object]) -> float:
    begin_s = time.thread_time()
    work()
    return 1000 * (time.thread_time() - begin_s)


if __name__ == "__main__":
    sys.exit(main())
