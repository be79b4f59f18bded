"""The policies that can be replayed, by name; most have one number to set.

Covers: making them, and the settings worth trying. Does not cover: the clairvoyant bound, which decides nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autoscaler.ahead import Ahead
from autoscaler.baselines import HybridHistogram, KeepAlive, ServePolicy
from autoscaler.idle import SHORTEST_S, Gaps
from autoscaler.layers import Profile
from autoscaler.replay import PolicyOf, SeriesPolicy
from autoscaler.traces import Trace

KEEP_S = (0.0, 10.0, 60.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
TUNED_LOAD = 0.8
TUNED_LOOK_BACK_S = 2.0
LAYERS_KEPT = 10


@dataclass(frozen=True)
class Named:
    """A policy: ``make(setting, gaps of all series)``; ``settings`` are worth trying, ``default`` is its own."""

    make: Callable[[float, Gaps], PolicyOf]
    settings: tuple[float, ...]
    default: float
    unit: str


def _serve(_setting: float, _prior: Gaps) -> PolicyOf:
    return lambda _name, profile, slots: ServePolicy(profile.coldest, slots)


def _serve_tuned(downscale_delay_s: float, _prior: Gaps) -> PolicyOf:
    def make(_name: str, profile: Profile, slots: int) -> SeriesPolicy:
        return ServePolicy(
            profile.coldest,
            slots,
            target_ongoing=slots * TUNED_LOAD,
            upscale_delay_s=0.0,
            downscale_delay_s=downscale_delay_s,
            look_back_s=TUNED_LOOK_BACK_S,
            interval_s=max(1.0, downscale_delay_s / 20),
        )

    return make


def _keep_alive(awake_s: float, _prior: Gaps) -> PolicyOf:
    return lambda _name, profile, slots: KeepAlive(profile.coldest, slots, awake_s=awake_s)


def _layered(awake_s: float, _prior: Gaps) -> PolicyOf:
    def make(_name: str, profile: Profile, slots: int) -> SeriesPolicy:
        kept = ((1, awake_s), (profile.coldest, LAYERS_KEPT * awake_s + 60)) if profile.coldest > 1 else ((1, awake_s),)
        return KeepAlive(profile.coldest, slots, rests=kept)

    return make


def _hybrid(_setting: float, _prior: Gaps) -> PolicyOf:
    return lambda _name, profile, slots: HybridHistogram(
        profile.coldest, slots, ready_s=profile.layers[profile.coldest].ready_s
    )


def _ours(worth: float, prior: Gaps) -> PolicyOf:
    return lambda _name, profile, slots: Ahead(profile.layers, slots, worth, prior)


POLICIES: dict[str, Named] = {
    "serve": Named(_serve, (), 600.0, "s"),
    "serve-tuned": Named(_serve_tuned, KEEP_S[1:], 600.0, "s until scaled down"),
    "keep-alive": Named(_keep_alive, KEEP_S, 600.0, "s awake"),
    "layered": Named(_layered, KEEP_S, 60.0, "s awake"),
    "hybrid": Named(_hybrid, (), 0.0, ""),
    "ours": Named(_ours, (1.0, 3.0, 10.0, 20.0, 40.0, 80.0, 160.0), 20.0, "device-s a second of waiting"),
}


def gaps_of(trace: Trace, until_s: float) -> Gaps:
    """Return the gaps of all series before ``until_s``, from which young series borrow."""
    gaps = Gaps.none(fade=1.0)
    for arrivals in trace.values():
        for gap_s in np.diff(arrivals.until(until_s).at_s):
            if gap_s > SHORTEST_S:
                gaps.add(float(gap_s))
    return gaps
