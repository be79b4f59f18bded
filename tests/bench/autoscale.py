"""Replays recorded traces through every scaling policy and compares what users wait and what devices cost.

Each policy's one number is chosen on the middle of a trace (40 to 65 % of its time): the cheapest with at most one
second of added waiting at p95, else the least waiting. The rest of the trace judges. Two comparisons, both without
reading anything off between two settings: the cheapest settings of ours and of reactive scaling with a p95 no later
than the latter's as it was tuned, and the setting of ours with the least waiting among those that take no more
device-seconds than another policy as it was tuned. Missing a target is a result, not a failure.

Usage: python tests/bench/autoscale.py [TRACES] [--profiles gpu-7b,gpu-7b-s3] [--only NAME,...]
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from autoscale_forecasts import ets, with_neural
from autoscale_plot import plot
from autoscale_speed import speeds
from autoscale_traces import SAMPLES, traces_in
from frontier import SAME_S, SOON_S, Point, Tried, chosen, higher, lower, no_dearer, no_later, worse
from report import RESULTS_DIR, Result, Target, make_report, print_report, wide_console, write_report
from rich import box
from rich.progress import Progress
from rich.table import Table

from autoscaler.clairvoyant import bound
from autoscaler.config import AutoscalingConfig
from autoscaler.foretold import CHOSEN, foretell, past_of
from autoscaler.layers import PROFILES, Profile
from autoscaler.policies import BESIDE_S, POLICIES, SETTINGS_OF_OURS, Known, Named, by_forecast, gaps_of, ours
from autoscaler.replay import Outcome, replay_parts, total
from autoscaler.traces import Trace
from autoscaler.types import Floats, Past

NAME = "autoscale"
TUNE_FROM, JUDGE_FROM = 0.4, 0.65
SLOTS = 8
REACTIVE, WITHOUT_NEURAL, OURS, BOUND = "serve-tuned", "ours without NeuralProphet", "ours", "clairvoyant"
ETS, NEURAL = "ETS", "with NeuralProphet"
LESS_IDLE, NEAR_BOUND = Target(0.32, "min"), Target(1.25, "max")
MOSTLY, NOWHERE = Target(0.8, "min"), Target(0, "max")
UNREACHED = 999.0
LIVE = AutoscalingConfig().waiting_worth
FIXED_S = (60.0, 600.0, 3600.0)
BY_ETS = Named(partial(by_forecast, ETS), BESIDE_S, 600.0, "s awake")
WITH_NEURAL = Named(partial(ours, NEURAL), SETTINGS_OF_OURS, 100.0, "device-s a second of waiting")
COMPARED = (
    *("serve", REACTIVE, "keep-alive 60", "keep-alive 600", "keep-alive 3600"),
    *("hybrid", "layered", "stepwise", "seasonal-naive", "ets", WITHOUT_NEURAL),
)


@dataclass(frozen=True)
class Judged:
    """A policy on one trace and profile: every setting on the part that judges, and the one chosen beforehand."""

    tried: Tried
    setting: float

    @property
    def point(self) -> Point:
        """What it came to as chosen."""
        return self.tried[self.setting]


Key = tuple[str, str]
Verdicts = dict[Key, dict[str, Judged]]


def main() -> int:
    """Runs the bench; returns 0 however the targets turn out."""
    options = parse_options()
    profiles = [PROFILES[name] for name in options.profiles.split(",")]
    judged: Verdicts = {}
    multi: set[str] = set()
    notes = [f"{name}: {PROFILES[name].source}" for name in options.profiles.split(",")]
    replayed, spent_s = 0, 0.0
    with Progress(console=wide_console()) as progress:
        task = progress.add_task("replaying", total=None)
        for name, trace, remark in traces_in(options.traces):
            if options.only and name not in options.only.split(","):
                continue
            progress.update(task, description=name)
            known, neural = knowledge(trace)
            notes.append(f"{name}: {remark}" + ("" if neural else "; too short or too sparse for NeuralProphet"))
            multi |= {name} if len(trace) > 1 else set()
            for profile in profiles:
                began_s = time.process_time()
                judged[name, profile.name], requests = judge(trace, profile, known)
                replayed, spent_s = replayed + requests, spent_s + time.process_time() - began_s
                progress.console.print(shown(name, profile.name, judged[name, profile.name]))
    found = [*results(judged, multi), *speeds(replayed, spent_s)]
    report = make_report(NAME, found, [*notes, *remarks(judged)])
    write_report(report)
    plot(judged, RESULTS_DIR / f"{NAME}.png")
    # The tables were printed as they came.
    print_report(replace(report, notes=tuple(notes)))
    return 0


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("traces", type=Path, nargs="?", default=SAMPLES, help="directory of traces; default: samples")
    parser.add_argument("--profiles", default="gpu-7b,gpu-7b-s3")
    parser.add_argument("--only", default="")
    return parser.parse_args()


def knowledge(trace: Trace) -> tuple[Known, bool]:
    """What policies may know: gaps until tuning begins, forecasts bucket by bucket; and whether NeuralProphet is in."""
    fitted = int(past_of(trace).buckets * TUNE_FROM)
    neural: list[bool] = []

    def said(past: Past) -> Floats:
        rates = with_neural(tuple(trace), past, fitted)
        neural.append(rates is not None)
        return np.full_like(past.counts, np.nan) if rates is None else rates

    foretold = foretell(trace, {ETS: partial(ets, fitted=fitted), NEURAL: said})
    silent = ~np.isfinite(foretold.rates[NEURAL]).any(axis=1)
    foretold.rates[NEURAL][silent] = foretold.rates[CHOSEN][silent]
    end_s = max(float(each.at_s[-1]) for each in trace.values())
    return Known(gaps_of(trace, TUNE_FROM * end_s), foretold), neural[0]


def judge(trace: Trace, profile: Profile, known: Known) -> tuple[dict[str, Judged], int]:
    """Replays every setting of every policy; returns what they come to, and how many requests were replayed for it."""
    end_s = math.nextafter(max(float(each.at_s[-1]) for each in trace.values()), math.inf)
    parts = [(TUNE_FROM * end_s, JUDGE_FROM * end_s), (JUDGE_FROM * end_s, end_s)]
    alike, unlike = told_apart(trace, known)
    found: dict[str, Judged] = {}
    replayed = 0

    def points(policy: Named, some: Trace) -> dict[float, list[Outcome]]:
        nonlocal replayed
        settings = policy.settings or (policy.default,)
        replayed += len(settings) * sum(len(each.at_s) for each in some.values())
        return {each: replay_parts(some, policy.make(each, known), profile, SLOTS, parts) for each in settings}

    for name, policy in (POLICIES | {"ets": BY_ETS}).items():
        if name != OURS:
            found[name] = judged_by(points(policy, trace))
    # Series of which NeuralProphet is not believed come out the same with and without it.
    same = points(POLICIES[OURS], alike)
    for name, policy in ((WITHOUT_NEURAL, POLICIES[OURS]), (OURS, WITH_NEURAL)):
        other = points(policy, unlike)
        found[name] = judged_by(
            {setting: [total(pair) for pair in zip(same[setting], other[setting], strict=True)] for setting in same}
        )
    for awake_s in FIXED_S:
        found[f"keep-alive {awake_s:g}"] = Judged(found["keep-alive"].tried, awake_s)
    del found["keep-alive"]
    found[BOUND] = Judged({0.0: point_of(bound(trace, profile, SLOTS, begin_s=parts[1][0], end_s=end_s))}, 0.0)
    return found, replayed


def told_apart(trace: Trace, known: Known) -> tuple[Trace, Trace]:
    """The series whose rates NeuralProphet changes nothing of, and the others."""
    rates = known.foretold.rates
    apart = {
        name
        for name, one, other in zip(known.foretold.names, rates[CHOSEN], rates[NEURAL], strict=True)
        if not np.array_equal(one, other, equal_nan=True)
    }
    return {name: trace[name] for name in trace if name not in apart}, {
        name: trace[name] for name in trace if name in apart
    }


def judged_by(outcomes: Mapping[float, list[Outcome]]) -> Judged:
    """Every setting as it was judged, and the one chosen by the part before."""
    setting = chosen({setting: point_of(first) for setting, (first, _) in outcomes.items()})
    return Judged({setting: point_of(second) for setting, (_, second) in outcomes.items()}, setting)


def point_of(outcome: Outcome) -> Point:
    """What is compared of an outcome."""
    return Point(
        idle_s=outcome.unused_s,
        total_s=outcome.total_s,
        p50_s=outcome.wait_s(0.5),
        p95_s=outcome.wait_s(0.95),
        p99_s=outcome.wait_s(0.99),
        cold=outcome.cold_requests,
        soon=outcome.within(SOON_S),
        starts=outcome.starts,
    )


def results(judged: Verdicts, multi: set[str]) -> Iterator[Result]:
    """The comparisons with their targets: by profile over the traces, and each trace's as samples."""
    for profile in dict.fromkeys(profile for _, profile in judged):
        there = {trace: policies for (trace, each), policies in judged.items() if each == profile}
        several = {trace: policies for trace, policies in there.items() if trace in multi}
        if several:
            yield from at_equal_waiting(several, profile)
        yield from at_equal_cost(there, profile)


def at_equal_waiting(there: Mapping[str, dict[str, Judged]], profile: str) -> Iterator[Result]:
    """Ours against tuned reactive scaling where neither is later than the latter as tuned, and with p95 within 1 s.

    Both are given their cheapest settings with hindsight. Where reactive scaling never gets within a second, only the
    distance of ours from the bound is told.
    """
    saved: dict[str, list[float]] = {"at equal p95": [], "p95 in 1 s": []}
    over: dict[str, list[float]] = {how: [] for how in saved}
    for trace, policies in there.items():
        tuned_s, least_s = policies[REACTIVE].point.p95_s, policies[BOUND].point.total_s
        for how, limit_s in zip(saved, (tuned_s, SOON_S), strict=True):
            reactive, point = (no_later(policies[name].tried, limit_s) for name in (REACTIVE, OURS))
            where = f"{trace}, {profile}, {how} ({limit_s:.2f} s)"
            over[how].append(point.total_s / least_s if point else UNREACHED)
            yield Result(f"{where}: total", over[how][-1], "ratio", (over[how][-1],), NEAR_BOUND, BOUND)
            if reactive is not None:
                saved[how].append(1.0 - point.idle_s / reactive.idle_s if point else 0.0)
                yield Result(f"{where}: idle saved", saved[how][-1], "share", (saved[how][-1],), LESS_IDLE, REACTIVE)
    for how, shares in saved.items():
        worst, least = max(over[how]), min(shares, default=0.0)
        yield Result(f"{profile}, {how}: idle saved, least", least, "share", tuple(shares), LESS_IDLE, REACTIVE)
        yield Result(f"{profile}, {how}: total, worst", worst, "ratio", tuple(over[how]), NEAR_BOUND, BOUND)
    for how in ("as set before", f"at the live {LIVE:g}"):
        soon = tuple(each[OURS].tried[LIVE if "live" in how else each[OURS].setting].soon for each in there.values())
        yield Result(f"{profile}: in 1 s {how}, least", min(soon), "share", soon, Target(0.95, "min"))


def at_equal_cost(there: Mapping[str, dict[str, Judged]], profile: str) -> Iterator[Result]:
    """On how many traces ours waits less than each other policy for no more device-seconds, and where it is worse.

    Samples are 1 where ours is lower or both are zero, 0 where both are equal otherwise, -1 where ours is higher.
    """
    for other in COMPARED:
        signs: dict[str, list[float]] = {"p95": [], "p99": [], "cold starts": []}
        later = []
        losses = []
        for policies in there.values():
            theirs = policies[other].point
            point = no_dearer(policies[OURS].tried, theirs.total_s)
            # Who is cheaper than anything of ours is taken to be better at everything.
            pairs = {
                "p95": (point.p95_s if point else np.inf, theirs.p95_s, SAME_S),
                "p99": (point.p99_s if point else np.inf, theirs.p99_s, SAME_S),
                "cold starts": (float(point.cold) if point else np.inf, float(theirs.cold), 0.0),
            }
            for what, pair in pairs.items():
                signs[what].append(float(lower(*pair)) - float(higher(*pair)))
            losses.append(float(any(worse(*pair) for pair in pairs.values())))
            late = (1.0 - point.soon if point else np.inf, 1.0 - theirs.soon)
            later.append(float(lower(*late)) - float(higher(*late)))
        for what, each in signs.items():
            share = float(np.mean(np.array(each) > 0))
            yield Result(f"{profile}, equal cost: {what} lower", share, "of traces", tuple(each), MOSTLY, other)
        # A cold start is any wait for an engine, be it half a second of waking: so how many are felt is told too.
        share = float(np.mean(np.array(later) > 0))
        yield Result(f"{profile}, equal cost: fewer wait over 1 s", share, "of traces", tuple(later), None, other)
        yield Result(f"{profile}, equal cost: > 5 % worse", sum(losses), "traces", tuple(losses), NOWHERE, other)


def shown(trace: str, profile: str, policies: Mapping[str, Judged]) -> Table:
    """The table of one trace and profile, each policy as chosen beforehand."""
    table = Table(box=box.SIMPLE, title=f"{trace}, {profile}")
    for heading in ("policy", "setting", "idle GPU-s", "total GPU-s", "wait p50", "p95", "p99", "cold", "in 1 s"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for name, each in policies.items():
        table.add_row(name, f"{each.setting:g}", *cells(each.point))
    return table


def cells(point: Point) -> list[str]:
    """The numbers of a row."""
    waits = [f"{wait_s:.2f}" for wait_s in (point.p50_s, point.p95_s, point.p99_s)]
    return [f"{point.idle_s:.0f}", f"{point.total_s:.0f}", *waits, str(point.cold), f"{point.soon:.1%}"]


def remarks(judged: Verdicts) -> Iterator[str]:
    """A line for every policy on every trace, and for every setting of ours."""
    for (trace, profile), policies in judged.items():
        for name, each in policies.items():
            tried = each.tried if name in {OURS, WITHOUT_NEURAL} else {each.setting: each.point}
            for setting, point in tried.items():
                idle, total, p50, p95, p99, cold, soon = cells(point)
                yield (
                    f"{trace}, {profile}, {name} at {setting:g}: idle {idle} GPU-s, total {total} GPU-s, added wait "
                    f"p50 {p50} s, p95 {p95} s, p99 {p99} s, cold {cold}, within 1 s {soon}"
                )


if __name__ == "__main__":
    sys.exit(main())
