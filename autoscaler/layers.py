"""Where an engine can rest, what resting there costs, and how long it takes to serve from there.

Layers after RainbowCake (Yu et al., ASPLOS 2024): each is kept on its own terms. Covers: plain data, and profiles of
start times that were measured or published. Does not cover: measuring (the stores and engines), choosing (``rest``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LayerName = Literal["awake", "asleep", "dram", "disk", "remote"]
AWAKE = 0


@dataclass(frozen=True)
class Layer:
    """``ready_s``: from here to serving. ``device_share``: of a replica's device, held while an engine rests here."""

    name: LayerName
    ready_s: float
    device_share: float


@dataclass(frozen=True)
class Profile:
    """The layers of one kind of engine, warmest first; the first is ``awake``, which is ready at once.

    ``source`` says where the times are from.
    """

    name: str
    layers: tuple[Layer, ...]
    source: str

    def __post_init__(self) -> None:
        ready, shares = [each.ready_s for each in self.layers], [each.device_share for each in self.layers]
        if self.layers[0] != Layer("awake", 0.0, 1.0):
            raise ValueError(f"the first layer of '{self.name}' is not awake, ready at once, on a whole device")
        if ready != sorted(ready) or shares != sorted(shares, reverse=True):
            raise ValueError(f"the layers of '{self.name}' do not go from ready and dear to slow and cheap")

    @property
    def coldest(self) -> int:
        """The index of the last layer."""
        return len(self.layers) - 1


def _profile(name: str, source: str, layers: Sequence[tuple[LayerName, float, float]]) -> Profile:
    return Profile(name, (Layer("awake", 0.0, 1.0), *(Layer(*each) for each in layers)), source)


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        _profile(
            "cpu",
            "bench-coldstart: SmolLM2-135M on two processor cores, times to the first token less a warm engine's; 2 % "
            "taken while asleep (assumed)",
            [("asleep", 0.24, 0.02), ("dram", 1.2, 0.0)],
        ),
        _profile(
            "cpu-replica",
            "as cpu, where replicas are given back: a new one starts on a node that is warm",
            [("remote", 12.4, 0.0)],
        ),
        _profile(
            "gpu-7b",
            "7B on an A100, published: wake 0.6 s (FlashServe, from its 49x), process start 8 s with a warm snapshot; "
            "2 % of the device stays taken while asleep (assumed)",
            [("asleep", 0.6, 0.02), ("dram", 8.0, 0.0)],
        ),
        _profile("gpu-7b-s3", "7B loaded from S3 in 28 s (FlashServe's 25 to 30 s)", [("remote", 28.0, 0.0)]),
        _profile(
            "gpu-32b",
            "Qwen3-32B on an H100, published: wake 2.7 s, pod snapshot and wake 18 s, cold 278 s; 2 % taken while "
            "asleep (assumed)",
            [("asleep", 2.7, 0.02), ("dram", 18.0, 0.0)],
        ),
        _profile(
            "gpu-13b",
            "13B on an A100, derived from gpu-7b by bytes (26 GB for 14): wake 1.1 s, start 8.5 s",
            [("asleep", 1.1, 0.02), ("dram", 8.5, 0.0)],
        ),
        _profile(
            "gpu-70b",
            "70B on four H100 as one device, derived from gpu-32b by bytes of each (35 GB for 65): wake 1.5 s; start "
            "18 s as there, since most of it is not weights",
            [("asleep", 1.5, 0.02), ("dram", 18.0, 0.0)],
        ),
    )
}
