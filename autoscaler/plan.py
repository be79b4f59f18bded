"""Which engines to make ready ahead of demand when there isn't room for all: by waiting saved, for each unit it takes.

Covers: choosing among moves to warmer layers within budgets of devices and host memory, what to cancel, and what wrong
ones have cost. Does not cover: wishing for them (``policy``), carrying them out (residency and the stores, which may
refuse).

A wish saves ``rate x seconds saved x requests that would wait``, in seconds of waiting a second. What it takes is a
share of the device and of the memory budget, whichever is scarcer for it; the best ratios go first (a knapsack's
greedy order), and what doesn't fit is passed over, not waited for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["wake", "promote", "preload"]


@dataclass(frozen=True)
class Wish:
    """A move that the forecast asks for: an engine to wake, a snapshot to a warmer tier, an adapter to load.

    ``expected_per_s`` is the hazard of being asked for, ``saves_s`` what each of ``burst`` requests would wait less.
    """

    kind: Kind
    name: str
    expected_per_s: float
    saves_s: float
    burst: float
    device_share: float
    host_bytes: int

    @property
    def saved_per_s(self) -> float:
        """Seconds of waiting saved a second."""
        return self.expected_per_s * self.saves_s * self.burst


@dataclass(frozen=True)
class Room:
    """What may be used ahead of demand."""

    devices: float
    host_bytes: int


@dataclass(frozen=True)
class Plan:
    """``go`` are wishes to carry out, best first; ``cancel`` those under way that are wished for no more, with why."""

    go: tuple[Wish, ...] = ()
    passed_over: tuple[Wish, ...] = ()
    cancel: dict[str, str] = field(default_factory=dict)


def plan(wishes: Iterable[Wish], under_way: Iterable[str], room: Room) -> Plan:
    """Choose within the room; what is ``under_way`` and wished for still counts against it like the rest."""
    going: list[Wish] = []
    passed_over: list[Wish] = []
    devices, host_bytes = room.devices, room.host_bytes
    for wish in sorted(wishes, key=lambda each: (-worth_of(each, room), each.name)):
        if wish.saved_per_s > 0 and wish.device_share <= devices and wish.host_bytes <= host_bytes:
            devices -= wish.device_share
            host_bytes -= wish.host_bytes
            going.append(wish)
        else:
            passed_over.append(wish)
    kept, wanted = {wish.name for wish in going}, {wish.name for wish in passed_over}
    reasons = {True: "others save more waiting in the room there is", False: "no longer expected"}
    cancel = {name: reasons[name in wanted] for name in under_way if name not in kept}
    return Plan(tuple(going), tuple(passed_over), cancel)


def worth_of(wish: Wish, room: Room) -> float:
    """Return the waiting saved a second for each unit of the scarcer budget that the wish takes."""
    shares = [
        taken / whole if whole > 0 else float("inf")
        for taken, whole in ((wish.device_share, room.devices), (wish.host_bytes, room.host_bytes))
        if taken > 0
    ]
    largest = max(shares, default=0.0)
    return wish.saved_per_s / largest if largest > 0 else float("inf")


@dataclass
class Wrong:
    """What was made ready and not used: how often, and what it held meanwhile."""

    number: int = 0
    device_s: float = 0.0
    byte_s: float = 0.0
    right: int = 0

    def ended(self, wish: Wish, *, used: bool, held_s: float) -> None:
        """A wish that was carried out was used, or given up after ``held_s``."""
        if used:
            self.right += 1
            return
        self.number += 1
        self.device_s += wish.device_share * held_s
        self.byte_s += wish.host_bytes * held_s
