"""What an engine's time on its device was used for, and for whom: what a bill would need.

Pure: the clock is the caller's. Does not cover: when it is asked (``resident``), who is told (``residency_metrics``).
"""

from collections.abc import Mapping

from deployments.types import EngineState

Use = str
# An engine that is cold, failed or stopped holds nothing.
_USES: dict[EngineState, Use] = {
    "awake": "idle", "asleep": "asleep", "starting": "changing", "waking": "changing", "sleeping": "changing",
    "stopping": "changing",
}  # fmt: skip
USES = ("busy", "idle", "asleep", "changing")


class DeviceTime:
    """One engine's."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._shares: dict[tuple[Use, str], float] = {}

    def settle(self, state: EngineState, running: Mapping[str, int], now_s: float) -> dict[tuple[Use, str], float]:
        """Return the seconds since the last time by use and tenant, and go by ``state`` and ``running`` from now on.

        ``running`` counts requests by tenant: they share the time while there are any. What belongs to nobody has "".
        """
        passed_s = max(0.0, now_s - self._since_s)
        spent = {each: share * passed_s for each, share in self._shares.items() if passed_s > 0}
        self._since_s, self._shares = now_s, _shares(state, running)
        return spent


def _shares(state: EngineState, running: Mapping[str, int]) -> dict[tuple[Use, str], float]:
    use = _USES.get(state)
    if use is None:
        return {}
    total = sum(running.values())
    if use != "idle" or not total:
        return {(use, ""): 1.0}
    return {("busy", tenant): count / total for tenant, count in running.items() if count}
