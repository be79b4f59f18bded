"""Which snapshots are to be kept in which tier: a file beside the disk tier, so that pins outlive everything."""

import json
from pathlib import Path

from storage.partial import DirectoryLock, TierName

_NAME = "pins.json"


def read_pins(root: Path) -> dict[str, TierName]:
    """Return the tier that each pinned snapshot is to be kept in."""
    try:
        pins: dict[str, TierName] = json.loads((root / _NAME).read_bytes())
    except FileNotFoundError:
        return {}
    return pins


def write_pin(root: Path, snapshot_id: str, tier: TierName | None) -> None:
    """Pin a snapshot to a tier, or with None no longer."""
    with DirectoryLock(root, wait=True):
        pins = read_pins(root)
        if pins.get(snapshot_id) == tier:
            return
        pins.pop(snapshot_id, None)
        if tier is not None:
            pins[snapshot_id] = tier
        partial = root / f".{_NAME}.partial"
        partial.write_text(json.dumps(pins))
        partial.replace(root / _NAME)
