"""What is told of a replica's engines as they are looked after; whoever wants to know inherits from ``Unwatched``."""

from collections.abc import Mapping

from deployments.device_time import Use
from deployments.types import EngineState


class Unwatched:
    """Takes everything and does nothing. Methods must neither block nor raise."""

    def held(self, model_id: str, state: EngineState, seconds: float) -> None:
        """Take note that a request has got its engine, which was in ``state`` when it came."""

    def changed(self, model_id: str, before: EngineState | None, now: EngineState) -> None:
        """Take note of a change of state; ``before`` is None for an engine that is new here."""

    def spent(self, model_id: str, spent: Mapping[tuple[Use, str], float]) -> None:
        """Take the seconds that an engine's time was used for, by use and tenant."""

    def seen(self, model_id: str, state: EngineState, waiting: int, held_bytes: int) -> None:
        """Take an engine's state, how many requests wait for it, and what it holds of the device; told all the time."""
