"""What a node's tiers hold and what goes between them, as Ray metrics: in the dashboard, and on ``/metrics``."""

from typing import Literal

from ray.util.metrics import Counter, Gauge, Histogram

from storage.partial import TierName
from storage.peer import Failure
from storage.store_watch import Unwatched

_BOUNDARIES_S = [0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]


class StoreMetrics(Unwatched):
    """The metrics of one store's process. A copy's bandwidth is its bytes over its seconds."""

    def __init__(self) -> None:
        self._used = Gauge("flashserve_tier_used_bytes", "Bytes in a tier, or spoken for.", ("tier",))
        self._capacity = Gauge("flashserve_tier_capacity_bytes", "Bytes that a tier may hold.", ("tier",))
        self._snapshots = Gauge("flashserve_tier_snapshots", "Snapshots in a tier.", ("tier",))
        self._asked = Counter(
            "flashserve_snapshot_requests_total", "Snapshots asked for, by the fastest tier that had them.", ("tier",)
        )
        self._bytes = Counter("flashserve_promoted_bytes_total", "Bytes copied into a tier.", ("origin", "tier"))
        self._seconds = Histogram(
            "flashserve_promotion_seconds", "How long a snapshot's copy took.", _BOUNDARIES_S, ("origin",)
        )
        self._failed = Counter(
            "flashserve_promotions_failed_total", "Copies that did not come to their end.", ("origin",)
        )
        self._fetched = Counter(
            "flashserve_fetched_bytes_total", "Bytes that came to a node, from its peers or the source.", ("origin",)
        )
        self._given = Counter("flashserve_peer_given_bytes_total", "Bytes read for other nodes.")
        self._peers_failed = Counter(
            "flashserve_peers_failed_total", "Peers that were not asked for a snapshot again, by why.", ("reason",)
        )
        self._evicted = Counter("flashserve_evictions_total", "Snapshots that had to make room.", ("tier",))

    def asked(self, found_in: str) -> None:
        """See ``Unwatched.asked``."""
        self._asked.inc(1, {"tier": found_in})

    def copied(self, origin: str, tiers: list[TierName], size_bytes: int, seconds: float) -> None:
        """See ``Unwatched.copied``."""
        self._seconds.observe(seconds, {"origin": origin})
        for tier in tiers:
            self._bytes.inc(size_bytes, {"origin": origin, "tier": tier})

    def failed(self, origin: str) -> None:
        """See ``Unwatched.failed``."""
        self._failed.inc(1, {"origin": origin})

    def evicted(self, tier: TierName, count: int) -> None:
        """See ``Unwatched.evicted``."""
        if count:
            self._evicted.inc(count, {"tier": tier})

    def holds(self, tier: TierName, used_bytes: int, capacity_bytes: int, snapshots: int) -> None:
        """See ``Unwatched.holds``."""
        self._used.set(used_bytes, {"tier": tier})
        self._capacity.set(capacity_bytes, {"tier": tier})
        self._snapshots.set(snapshots, {"tier": tier})

    def fetched(self, origin: Literal["peer", "source"], size_bytes: int) -> None:
        """See ``Unwatched.fetched``."""
        self._fetched.inc(size_bytes, {"origin": origin})

    def gave(self, size_bytes: int) -> None:
        """See ``Unwatched.gave``."""
        self._given.inc(size_bytes)

    def peer_failed(self, reason: Failure) -> None:
        """See ``Unwatched.peer_failed``."""
        self._peers_failed.inc(1, {"reason": reason})
