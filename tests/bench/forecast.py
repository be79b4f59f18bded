"""Replays recorded traces through every scaling policy and compares what users wait and what idle devices cost.

Each policy's number is chosen on the middle of a trace (40 to 65 % of its time) and judged on the rest, which nobody
has seen: the cheapest with at most 5 % of first tokens later than one second; where tuned reactive scaling doesn't get
there, as many late ones as Ray Serve's default has. As load changes meanwhile, policies come out with different shares
of late requests, so costs are also compared where ours is exactly as late. Missing a target is a result, not a
failure.

Usage: python tests/bench/forecast.py TRACES [--profiles gpu-7b-s3,gpu-7b] [--only NAME,...]
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from forecast_plot import plot
from report import RESULTS_DIR, Result, Target, make_report, print_report, wide_console, write_report
from rich.progress import Progress

from autoscaler.clairvoyant import bound
from autoscaler.layers import PROFILES, Profile
from autoscaler.policies import POLICIES, gaps_of
from autoscaler.replay import Outcome, replay
from autoscaler.traces import Trace, read_trace

NAME = "forecast"
TUNE_FROM, JUDGE_FROM = 0.4, 0.65
LATE_S, LATE_SHARE = 1.0, 0.05
SLOTS = 8
# Trace, every n-th series, requests above which a series is left out: it would be awake all the time anyway.
TRACES = {
    "azure_functions_2019_day": (1, 10_000),
    "azure_functions_2019_8h": (1, 10_000),
    "gentd26_requests": (1, None),
    "servegen_client_windows": (8, 20_000),
}
BASELINE, OURS, BOUND = "serve-tuned", "ours", "clairvoyant"


@dataclass(frozen=True)
class Judged:
    """A policy's outcome on the part that was not seen, and with which setting."""

    outcome: Outcome
    setting: float


def main() -> int:
    """Runs the bench; returns 0 however the targets turn out."""
    options = parse_options()
    profiles = [PROFILES[name] for name in options.profiles.split(",")]
    wanted = options.only.split(",") if options.only else list(TRACES)
    judged: dict[tuple[str, str], dict[str, Judged]] = {}
    notes: list[str] = []
    with Progress(console=wide_console()) as progress:
        task = progress.add_task("replaying", total=len(wanted) * len(profiles))
        for name in wanted:
            thin, limit = TRACES[name]
            trace = read_trace(options.traces / f"{name}.csv.gz", thin=thin, limit=limit)
            for profile in profiles:
                progress.update(task, description=f"{name}, {profile.name}")
                judged[name, profile.name], allowed = judge(trace, profile)
                requests = sum(len(each.at_s) for each in trace.values())
                notes.append(
                    f"{name}, {profile.name}: {len(trace)} series, {requests} requests, late at most {allowed:.1%}"
                )
                for line in remarks({(name, profile.name): judged[name, profile.name]}):
                    progress.console.print(f"- {line}", highlight=False)
                progress.advance(task)
    report = make_report(NAME, list(results(judged)), [*notes, *remarks(judged)])
    write_report(report)
    plot(judged, RESULTS_DIR / f"{NAME}.png")
    # The remarks were printed as they came.
    print_report(replace(report, notes=tuple(notes)))
    return 0


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("traces", type=Path, help="directory of the traces")
    parser.add_argument("--profiles", default="gpu-7b-s3,gpu-7b")
    parser.add_argument("--only", default="")
    return parser.parse_args()


def judge(trace: Trace, profile: Profile) -> tuple[dict[str, Judged], float]:
    """Chooses every policy's setting; returns what each comes to, and the share of late requests chosen for."""
    end_s = max(float(each.at_s[-1]) for each in trace.values())
    tuned_s, judged_s = TUNE_FROM * end_s, JUDGE_FROM * end_s
    prior = gaps_of(trace, tuned_s)
    tried: dict[str, dict[float, Outcome]] = {}
    for name, policy in POLICIES.items():
        settings = policy.settings or (policy.default,)
        tried[name] = {
            setting: replay(trace, policy.make(setting, prior), profile, SLOTS, begin_s=tuned_s, end_s=judged_s)
            for setting in settings
        }
    reached = min(late(outcome) for outcome in tried[BASELINE].values()) <= LATE_SHARE
    allowed = LATE_SHARE if reached else late(tried["serve"][POLICIES["serve"].default])
    found: dict[str, Judged] = {}
    for name, outcomes in tried.items():
        setting = cheapest(outcomes, allowed)
        outcome = replay(trace, POLICIES[name].make(setting, prior), profile, SLOTS, begin_s=judged_s)
        found[name] = Judged(outcome, setting)
    for setting in POLICIES[OURS].settings:
        outcome = replay(trace, POLICIES[OURS].make(setting, prior), profile, SLOTS, begin_s=judged_s)
        found[f"{OURS} {setting:g}"] = Judged(outcome, setting)
    found[BOUND] = Judged(bound(trace, profile, SLOTS, begin_s=judged_s), 0.0)
    return found, allowed


def late(outcome: Outcome) -> float:
    """The share of first tokens that came later than they would have by more than LATE_S."""
    return 1.0 - outcome.within(LATE_S)


def cheapest(outcomes: dict[float, Outcome], allowed: float) -> float:
    """The setting that costs least with no more late requests than allowed, else with the fewest."""
    good = [setting for setting, outcome in outcomes.items() if late(outcome) <= allowed]
    if good:
        return min(good, key=lambda setting: outcomes[setting].unused_s)
    return min(outcomes, key=lambda setting: late(outcomes[setting]))


def results(judged: dict[tuple[str, str], dict[str, Judged]]) -> Iterator[Result]:
    """One row for what is compared, on each trace and profile."""
    for (trace, profile), policies in judged.items():
        ours, baseline = policies[OURS].outcome, policies[BASELINE].outcome
        saved = 1.0 - ours.unused_s / baseline.unused_s
        where = f"{trace}, {profile}"
        yield Result(f"{where}: idle cost saved", saved, "share", (saved,), Target(0.32, "min"), BASELINE)
        equal = 1.0 - equally_late(policies, baseline) / baseline.unused_s
        yield Result(f"{where}: idle cost saved, equally late", equal, "share", (equal,), Target(0.32, "min"), BASELINE)
        within = ours.within(LATE_S)
        yield Result(f"{where}: first tokens in 1 s", within, "share", (within,), Target(0.95, "min"))
        over = ours.total_s / policies[BOUND].outcome.total_s
        yield Result(f"{where}: all device time", over, "ratio", (over,), Target(1.25, "max"), BOUND)


def equally_late(policies: dict[str, Judged], other: Outcome) -> float:
    """Unused device-seconds of ours where it lets as many requests be late as ``other``, between its settings."""
    tried = [each.outcome for name, each in policies.items() if name.startswith(f"{OURS} ")]
    points = sorted((late(outcome), outcome.unused_s) for outcome in tried)
    # More is never bought for less: a setting that costs more and is later than another is no choice.
    unused_s = np.minimum.accumulate([unused for _, unused in points])
    return float(np.interp(late(other), [share for share, _ in points], unused_s))


def remarks(judged: dict[tuple[str, str], dict[str, Judged]]) -> Iterator[str]:
    """A line for every policy on every trace."""
    for (trace, profile), policies in judged.items():
        for name, each in policies.items():
            outcome = each.outcome
            waits = ", ".join(f"p{share} {outcome.wait_s(share / 100):.2f}" for share in (50, 95, 99))
            hours = ", ".join(f"{kind} {seconds / 3600:.1f}" for kind, seconds in outcome.spent_s.items())
            yield (
                f"{trace}, {profile}, {name} at {each.setting:g}: added wait {waits} s, within 1 s "
                f"{outcome.within(1.0):.1%}, device hours {hours}, starts {outcome.starts}, ahead {outcome.prewarms}, "
                f"for nothing {outcome.wrong_prewarms} ({outcome.wrong_s / 3600:.2f} h)"
            )


if __name__ == "__main__":
    sys.exit(main())
