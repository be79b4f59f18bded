"""What a snapshot store tells of its work; whoever wants to know inherits from ``Unwatched``."""

from storage.partial import TierName


class Unwatched:
    """Takes everything and does nothing. Methods must neither block nor raise."""

    def asked(self, found_in: str) -> None:
        """Take note that a snapshot was asked for, and which tier had it: ``dram``, ``disk`` or ``remote``."""

    def copied(self, origin: str, tiers: list[TierName], size_bytes: int, seconds: float) -> None:
        """Take note of a copy from ``origin`` into ``tiers``, all at once."""

    def failed(self, origin: str) -> None:
        """Take note of a copy that did not come to its end."""

    def evicted(self, tier: TierName, count: int) -> None:
        """Take note of snapshots that had to make room."""

    def holds(self, tier: TierName, used_bytes: int, capacity_bytes: int, snapshots: int) -> None:
        """Take what a tier holds now."""
