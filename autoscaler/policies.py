"""The policies that can be replayed, by name; most have one number to set.

Covers: making them, and the settings worth trying. Does not cover: the clairvoyant bound, which decides nothing, and
forecasters that need fitting: whoever has what they said (``foretold``) makes policies of it with ``by_forecast`` and
``ours``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from autoscaler.ahead import Ahead
from autoscaler.baselines import ByForecast, HybridHistogram, KeepAlive, Layered, ServePolicy
from autoscaler.foretold import CHOSEN, NAIVE, RECENT, Foretold
from autoscaler.idle import SHORTEST_S, Gaps
from autoscaler.layers import Profile
from autoscaler.replay import PolicyOf, SeriesPolicy
from autoscaler.traces import Trace

KEEP_S = (0.0, 10.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)
LONGER_S = (7200.0, 14400.0)
TUNED_LOAD = 0.8
TUNED_LOOK_BACK_S = 2.0
READY_EARLY_S = 1.0
LAYERS_KEPT = 10
"""Stepwise keep-alive: how much longer an engine is asleep than awake, and a minute."""
BESIDE_S = (0.0, 60.0, 600.0, 3600.0)
"""Times awake beside what a forecast wants."""


@dataclass(frozen=True)
class Known:
    """What policies may know beforehand: gaps of all series from the time before, and what forecasters will say."""

    prior: Gaps
    foretold: Foretold


@dataclass(frozen=True)
class Named:
    """A policy: ``make(setting, what is known)``; ``settings`` are worth trying, ``default`` is its own."""

    make: Callable[[float, Known], PolicyOf]
    settings: tuple[float, ...]
    default: float
    unit: str


def _serve(_setting: float, _known: Known) -> PolicyOf:
    return lambda _name, profile, slots: ServePolicy(profile.coldest, slots)


def _serve_tuned(downscale_delay_s: float, _known: Known) -> PolicyOf:
    def make(_name: str, profile: Profile, slots: int) -> SeriesPolicy:
        return ServePolicy(
            profile.coldest,
            slots,
            target_ongoing=slots * TUNED_LOAD,
            upscale_delay_s=0.0,
            downscale_delay_s=downscale_delay_s,
            look_back_s=TUNED_LOOK_BACK_S,
            interval_s=TUNED_LOOK_BACK_S,
        )

    return make


def _keep_alive(awake_s: float, _known: Known) -> PolicyOf:
    return lambda _name, profile, slots: KeepAlive(profile.coldest, slots, awake_s=awake_s)


def _layered(worth: float, _known: Known) -> PolicyOf:
    return lambda _name, profile, slots: Layered(profile.coldest, slots, layers=profile.layers, worth=worth)


def _stepwise(awake_s: float, _known: Known) -> PolicyOf:
    def make(_name: str, profile: Profile, slots: int) -> SeriesPolicy:
        kept = ((1, awake_s), (profile.coldest, LAYERS_KEPT * awake_s + 60)) if profile.coldest > 1 else ((1, awake_s),)
        return KeepAlive(profile.coldest, slots, rests=kept)

    return make


def _hybrid(range_s: float, _known: Known) -> PolicyOf:
    return lambda _name, profile, slots: HybridHistogram(
        profile.coldest, slots, range_s=range_s, ready_s=profile.layers[profile.coldest].ready_s + READY_EARLY_S
    )


def by_forecast(who: str, awake_s: float, known: Known) -> PolicyOf:
    """Return keep-alive with a floor by what ``who`` forecasts."""
    return lambda name, profile, slots: ByForecast(
        profile.coldest,
        slots,
        awake_s=awake_s,
        expected_of=known.foretold.of(who, name),
        recheck_s=known.foretold.step_s,
    )


def ours(who: str, worth: float, known: Known) -> PolicyOf:
    """Return the policy that runs live, by what ``who`` forecasts."""
    return lambda name, profile, slots: Ahead(
        profile.layers,
        slots,
        worth,
        known.prior,
        expected_of=known.foretold.of(who, name),
        rate_of=known.foretold.of(RECENT, name),
        recheck_s=known.foretold.step_s,
    )


SETTINGS_OF_OURS = (
    *(0.1, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0),
    *(1e3, 2e3, 5e3, 1e4, 3e4, 1e5, 2e5, 5e5, 1e6),
)
POLICIES: dict[str, Named] = {
    "serve": Named(_serve, (), 600.0, "s"),
    "serve-tuned": Named(_serve_tuned, (*KEEP_S[1:], *LONGER_S), 600.0, "s until scaled down"),
    "keep-alive": Named(_keep_alive, KEEP_S, 600.0, "s awake"),
    "hybrid": Named(_hybrid, (900.0, 3600.0, 14400.0), 14400.0, "s of histogram"),
    "layered": Named(_layered, (1.0, 10.0, 50.0, 249.0, 1000.0, 5000.0), 249.0, "device-s a second of start"),
    "stepwise": Named(_stepwise, (0.0, 1.0, 10.0, 60.0, 300.0, 1800.0), 60.0, "s awake"),
    "seasonal-naive": Named(partial(by_forecast, NAIVE), BESIDE_S, 600.0, "s awake"),
    "ours": Named(partial(ours, CHOSEN), SETTINGS_OF_OURS, 100.0, "device-s a second of waiting"),
}


def gaps_of(trace: Trace, until_s: float) -> Gaps:
    """Return the gaps of all series before ``until_s``, from which young series borrow."""
    gaps = Gaps.none(fade=1.0)
    for arrivals in trace.values():
        for gap_s in np.diff(arrivals.until(until_s).at_s):
            if gap_s > SHORTEST_S:
                gaps.add(float(gap_s))
    return gaps
