"""What `throughput.py` reports, computed from its samples: pure, without servers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from report import Result, Target, median_result

Metric = Literal[
    "output_tokens_per_s", "ttft_ms", "tpot_ms", "outside_worker_cpu_ms_per_token", "serving_cpu_ms_per_token"
]
BATCH, SINGLE = 16, 1
STOCK, FLASHSERVE, RAY_LLM = "stock", "flashserve", "ray"
TITLES = {STOCK: "stock vLLM", FLASHSERVE: "FlashServe", RAY_LLM: "Ray Serve LLM"}
METRICS: dict[Metric, tuple[str, str]] = {
    "output_tokens_per_s": ("output tokens", "tokens/s"),
    "ttft_ms": ("median TTFT", "ms"),
    "tpot_ms": ("median TPOT", "ms"),
    "outside_worker_cpu_ms_per_token": ("CPU outside the worker", "ms/token"),
    "serving_cpu_ms_per_token": ("CPU outside the engine", "ms/token"),
}


@dataclass(frozen=True)
class Sample:
    """One run of the load generator on one server; latencies are medians over the requests of the run.

    The processor times are those of all the server's processes but the engine's worker, and of all but the worker and
    the EngineCore, in ms per output token.
    """

    round_index: int
    server: str
    concurrency: int
    output_tokens_per_s: float
    ttft_ms: float
    tpot_ms: float
    outside_worker_cpu_ms_per_token: float
    serving_cpu_ms_per_token: float


@dataclass(frozen=True)
class Comparison:
    """Two servers compared by a metric, round by round; `how` makes one number of (measured, compared with)."""

    measured: str
    compared_with: str
    metric: Metric
    concurrency: int
    kind: Literal["ratio", "difference"]
    target: Target | None = None

    def paired(self, samples: Sequence[Sample]) -> list[float]:
        """One number a round in which both were measured."""
        combine: Callable[[float, float], float] = {
            "ratio": lambda mine, theirs: mine / theirs,
            "difference": lambda mine, theirs: mine - theirs,
        }[self.kind]
        mine = by_round(samples, self.measured, self.concurrency, self.metric)
        theirs = by_round(samples, self.compared_with, self.concurrency, self.metric)
        return [combine(mine[i], theirs[i]) for i in sorted(mine.keys() & theirs.keys())]


MORE, LESS = Target(1.0, "min", strict=True), Target(1.0, "max", strict=True)
COMPARISONS = (
    Comparison(FLASHSERVE, STOCK, "output_tokens_per_s", BATCH, "ratio", Target(0.97, "min")),
    Comparison(FLASHSERVE, STOCK, "ttft_ms", SINGLE, "difference", Target(15.0, "max")),
    Comparison(FLASHSERVE, RAY_LLM, "output_tokens_per_s", BATCH, "ratio", MORE),
    Comparison(FLASHSERVE, RAY_LLM, "ttft_ms", SINGLE, "ratio", LESS),
    Comparison(FLASHSERVE, RAY_LLM, "ttft_ms", BATCH, "ratio", LESS),
    Comparison(RAY_LLM, STOCK, "output_tokens_per_s", BATCH, "ratio"),
    Comparison(RAY_LLM, STOCK, "ttft_ms", SINGLE, "difference"),
)


def by_round(samples: Sequence[Sample], server: str, concurrency: int, metric: Metric) -> dict[int, float]:
    """The metric of one server at one concurrency, by round."""
    return {
        sample.round_index: getattr(sample, metric)
        for sample in samples
        if sample.server == server and sample.concurrency == concurrency
    }


def summarize(samples: Sequence[Sample]) -> list[Result]:
    """The rows of the report; those of servers that were not measured are left out."""
    return [*server_results(samples), *comparison_results(samples)]


def server_results(samples: Sequence[Sample]) -> list[Result]:
    """The medians of each server; the token rate at 1 says no more than TPOT, so it is left out."""
    results = []
    for metric, (label, unit) in METRICS.items():
        for concurrency in (BATCH,) if metric == "output_tokens_per_s" else (SINGLE, BATCH):
            for server, title in TITLES.items():
                values = list(by_round(samples, server, concurrency, metric).values())
                if values:
                    results.append(median_result(f"{title}: {label} at {concurrency}", values, unit))
    return results


def comparison_results(samples: Sequence[Sample]) -> list[Result]:
    """The paired comparisons of servers that were both measured."""
    results = []
    for comparison in COMPARISONS:
        values = comparison.paired(samples)
        if values:
            label, unit = METRICS[comparison.metric]
            name = f"{TITLES[comparison.measured]}: {label} at {comparison.concurrency}, paired {comparison.kind}"
            unit = unit if comparison.kind == "difference" else "ratio"
            results.append(median_result(name, values, unit, comparison.target, TITLES[comparison.compared_with]))
    return results
