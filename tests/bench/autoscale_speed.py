"""How fast decisions and replays are, for `autoscale.py`."""

import time
from collections.abc import Iterator

from report import Result, Target, median_result

from autoscaler.config import AutoscalingConfig
from autoscaler.planner import Hosted, Planner
from autoscaler.reports import EngineReport, ReplicaReport
from autoscaler.types import Count

MODELS, TICKS, HOUR_S = 1000, 30, 3600.0


def speeds(replayed: int, spent_s: float) -> Iterator[Result]:
    """Milliseconds of a tick for 1,000 models; millions of requests a processor minute, of what was replayed."""
    yield median_result("a tick for 1,000 models", tick_ms(), "ms", Target(50.0, "max"))
    per_minute = replayed / spent_s * 60 / 1e6
    name = "replayed in a minute, all policies"
    yield Result(name, per_minute, "million requests", (per_minute,), Target(1.0, "min"))


def tick_ms() -> list[float]:
    """Processor milliseconds of each tick of a planner that knows an hour of 1,000 models, three requests a minute."""
    planner = Planner(AutoscalingConfig())
    names = [f"m{number}" for number in range(MODELS)]
    planner.serves({name: Hosted("pool", 8) for name in names})
    for at_s in range(0, int(HOUR_S), 60):
        planner.learn([Count(name, float(at_s + number % 37), 3) for number, name in enumerate(names)])
    report = ReplicaReport("r", "pool", {name: EngineReport("asleep", wake_s=0.4, start_s=3.0) for name in names})
    found = []
    for second in range(TICKS):
        now_s = HOUR_S + second
        planner.learn([Count(name, now_s, 3) for number, name in enumerate(names) if number % 60 == second % 60])
        planner.hear(report, now_s)
        begin_s = time.process_time()
        planner.tick(now_s)
        found.append(1000 * (time.process_time() - begin_s))
    return found[1:]
