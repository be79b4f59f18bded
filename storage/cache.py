"""What a tier keeps and what it lets go: a pure decision over plain data.

The value of keeping a snapshot in a tier is the waiting it saves: how often it will be asked for, times the seconds
that having it here saves over fetching it again. Bytes are what it costs. So the room goes to the highest
rate x seconds / bytes (compare ServerlessLoRA, section 4.2: value per size), and what is lowest leaves first.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """A snapshot in a tier as the decision sees it.

    ``rate_per_s`` is the forecast of requests that will need it, None when there is none; then past use stands in:
    ``uses`` since ``since_s``. ``saved_s`` are the seconds that a start is faster because it is here.
    """

    snapshot_id: str
    size_bytes: int
    leases: int
    pinned: bool
    uses: int
    since_s: float
    last_used_s: float
    saved_s: float = 1.0
    rate_per_s: float | None = None


@dataclass(frozen=True)
class Room:
    """What to do about a snapshot that wants in: ``evict`` these, then keep it, or not at all.

    Without ``fits`` nothing is evicted: giving up what others wait for, for nothing, helps nobody.
    """

    fits: bool
    evict: tuple[str, ...]
    reason: str


def make_room(kept: Iterable[Kept], needed_bytes: int, capacity_bytes: int, now_s: float) -> Room:
    """Decide how ``needed_bytes`` get into a tier of ``capacity_bytes`` that holds ``kept``.

    Leased and pinned snapshots stay, whatever is asked.
    """
    snapshots = list(kept)
    free_bytes = capacity_bytes - sum(snapshot.size_bytes for snapshot in snapshots)
    if needed_bytes <= free_bytes:
        return Room(fits=True, evict=(), reason=f"{free_bytes} bytes are free")
    candidates = sorted(
        (snapshot for snapshot in snapshots if not snapshot.leases and not snapshot.pinned),
        key=lambda snapshot: (worth_per_byte(snapshot, now_s), snapshot.last_used_s, snapshot.snapshot_id),
    )
    movable_bytes = sum(snapshot.size_bytes for snapshot in candidates)
    if needed_bytes > free_bytes + movable_bytes:
        held_bytes = capacity_bytes - free_bytes - movable_bytes
        return Room(fits=False, evict=(), reason=f"{held_bytes} of {capacity_bytes} bytes are leased or pinned")
    evicted = []
    for snapshot in candidates:
        if needed_bytes <= free_bytes:
            break
        evicted.append(snapshot)
        free_bytes += snapshot.size_bytes
    # One large snapshot at the end may have made smaller ones' leaving needless.
    for snapshot in sorted(evicted, key=lambda snapshot: -worth_per_byte(snapshot, now_s)):
        if needed_bytes <= free_bytes - snapshot.size_bytes:
            evicted.remove(snapshot)
            free_bytes -= snapshot.size_bytes
    return Room(fits=True, evict=tuple(snapshot.snapshot_id for snapshot in evicted), reason="the least waiting saved")


def worth_per_byte(snapshot: Kept, now_s: float) -> float:
    """Return the expected seconds of waiting that keeping it saves, a second and a byte."""
    rate_per_s = snapshot.rate_per_s
    if rate_per_s is None:
        rate_per_s = snapshot.uses / max(1.0, now_s - snapshot.since_s)
    return rate_per_s * snapshot.saved_s / max(1, snapshot.size_bytes)
