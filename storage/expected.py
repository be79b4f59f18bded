"""How often snapshots of a node will be asked for, as its replicas expect it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SILENT_S = 30.0
"""What a replica said longer ago is not believed any more."""


@dataclass
class ExpectedRates:
    """Of all replicas of the node; times are those of whoever asks."""

    _said: dict[str, tuple[float, dict[str, float]]] = field(default_factory=dict)

    def hear(self, replica_id: str, rates_per_s: Mapping[str, float], now_s: float) -> None:
        """Take a replica's requests a second by snapshot, in the place of what it said before."""
        self._said = {key: said for key, said in self._said.items() if now_s - said[0] <= SILENT_S}
        self._said[replica_id] = (now_s, dict(rates_per_s))

    def per_s(self, snapshot_id: str, now_s: float) -> float | None:
        """Return the requests a second of all replicas that expect any of it; None if none knows the snapshot."""
        rates = [
            rates[snapshot_id]
            for said_s, rates in self._said.values()
            if now_s - said_s <= SILENT_S and snapshot_id in rates
        ]
        return sum(rates) if rates else None

    def __repr__(self) -> str:
        return f"<ExpectedRates of {len(self._said)} replicas>"
