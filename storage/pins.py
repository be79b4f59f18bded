"""Which snapshots are to be kept in which tier, beside the disk tier, so that pins outlive everything."""

from pathlib import Path

from storage.kept_json import keep, read_kept
from storage.partial import TierName

_NAME = "pins.json"


def read_pins(root: Path) -> dict[str, TierName]:
    """Return the tier that each pinned snapshot is to be kept in."""
    return read_kept(root, _NAME)


def write_pin(root: Path, snapshot_id: str, tier: TierName | None) -> None:
    """Pin a snapshot to a tier, or with None no longer."""
    keep(root, _NAME, snapshot_id, tier)
