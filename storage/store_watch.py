"""What a snapshot store tells of its work; whoever wants to know inherits from ``Unwatched``."""

from typing import Literal

from storage.partial import TierName
from storage.peer import Failure


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

    def fetched(self, origin: Literal["peer", "source"], size_bytes: int) -> None:
        """Take note of bytes that came to this node, while peers can be asked."""

    def gave(self, size_bytes: int) -> None:
        """Take note of bytes that were read here for a peer."""

    def peer_failed(self, reason: Failure) -> None:
        """Take note of a peer that is not asked for a snapshot again."""
