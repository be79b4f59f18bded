"""How long starts, or wakes, of one engine take, by where its snapshot was when they began.

Covers: keeping what was measured, an estimate for a tier that nothing was measured from, the names of a wake's parts.
Does not cover: measuring (``lifecycle``), knowing where a snapshot is (``storage.actor``).
"""

# From fast to slow; ``checkpoint`` is a first start, which has no snapshot yet.
TIERS = ("dram", "disk", "remote", "checkpoint")
# How much the latest measurement counts.
_SMOOTHING = 0.5
# What workers call the parts of a wake, and what they are called here; others are within these.
_WAKE_STAGES = {
    "map_s": "map the snapshot", "copy_s": "copy weights", "kv_cache_s": "make room for the KV cache",
    "pack_s": "pack weights", "wake_up_s": "wake up",
}  # fmt: skip


def one_after_the_other(stages_s: dict[str, float], from_s: float = 0.0) -> dict[str, float]:
    """Return when each of the stages began, in order, the first of them at ``from_s``."""
    begins_s = {}
    for stage, takes_s in stages_s.items():
        begins_s[stage] = from_s
        from_s += takes_s
    return begins_s


def wake_stages_s(told: dict[str, float], canary_s: float) -> dict[str, float]:
    """Return by name what a worker tells of its wake that comes one after the other, and the check that ends it."""
    stages = {name: told[key] for key, name in _WAKE_STAGES.items() if key in told}
    return stages | {"ask the canary": canary_s}


class StartTimes:
    """Seconds by tier."""

    def __init__(self, guess_s: float) -> None:
        """``guess_s`` is the estimate before anything was measured."""
        self._guess_s = guess_s
        self._measured_s: dict[str, float] = {}

    def measured(self, tier: str, seconds: float) -> None:
        """Take a measurement into account."""
        before_s = self._measured_s.get(tier, seconds)
        self._measured_s[tier] = before_s + _SMOOTHING * (seconds - before_s)

    def latest_s(self, tier: str) -> float | None:
        """Return the estimate from ``tier``, or None if nothing was measured from any.

        From a tier without measurements it takes as long as from the next slower one that has some, or else, which is
        too little, as from the next faster one.
        """
        if not self._measured_s:
            return None
        place = _place(tier)
        return self._measured_s[
            min(self._measured_s, key=lambda other: (_place(other) < place, abs(_place(other) - place)))
        ]

    def seconds(self, tier: str) -> float:
        """Return the estimate from ``tier``; a guess before anything was measured."""
        latest_s = self.latest_s(tier)
        return self._guess_s if latest_s is None else latest_s

    def __repr__(self) -> str:
        return f"<StartTimes {self._measured_s}>"


def _place(tier: str) -> int:
    return TIERS.index(tier) if tier in TIERS else len(TIERS)
