"""Which snapshots and adapters to hold in a tier: a pure decision over plain data.

A knapsack with precedence: a candidate is worth the waiting it saves (rate of requests x seconds saved), costs its
bytes, and an adapter is worth nothing without its base (compare ServerlessLoRA, Sui et al. 2025, section 4.2).
Greedy by worth per byte, where a base competes together with those of its adapters that raise its ratio; that, or the
best single group, whichever is worth more. Does not cover: moving bytes (``store``).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """Something to hold; ``needs`` is the name of the one without which it is worth nothing."""

    name: str
    size_bytes: int
    saved_s: float
    rate_per_s: float
    needs: str | None = None

    @property
    def worth(self) -> float:
        """Seconds of waiting saved a second."""
        return self.rate_per_s * self.saved_s


@dataclass(frozen=True)
class _Group:
    """Candidates that are taken together, in the order in which they can be."""

    members: tuple[Candidate, ...]

    @property
    def worth(self) -> float:
        return sum(each.worth for each in self.members)

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.members)

    @property
    def per_byte(self) -> float:
        return self.worth / max(1, self.size_bytes)

    @property
    def name(self) -> str:
        return self.members[0].name


def choose(candidates: Iterable[Candidate], room_bytes: int) -> tuple[str, ...]:
    """Return the names of what to hold within ``room_bytes``, the most waiting saved for a byte first.

    Whose base is no candidate is not held. What is worth nothing by itself or to another is not held either.
    """
    known = {each.name: each for each in candidates}
    bases = [each for each in known.values() if each.needs is None]
    adapters: dict[str, list[Candidate]] = defaultdict(list)
    for each in known.values():
        if each.needs in known and each.worth > 0:
            adapters[each.needs].append(each)
    greedy = _greedy(bases, adapters, room_bytes)
    single = max((_filled(base, adapters[base.name], room_bytes) for base in bases), key=_worth, default=())
    best = max(greedy, single, key=_worth)
    return tuple(each.name for each in best)


def _greedy(bases: Iterable[Candidate], adapters: dict[str, list[Candidate]], room_bytes: int) -> tuple[Candidate, ...]:
    chosen: list[Candidate] = []
    left = {base.name: base for base in bases}
    open_adapters: list[Candidate] = []
    while True:
        groups = [_best_prefix(base, adapters[base.name], room_bytes) for base in left.values()]
        groups += [_Group((each,)) for each in open_adapters]
        fitting = [group for group in groups if group.members and group.size_bytes <= room_bytes and group.worth > 0]
        if not fitting:
            return tuple(chosen)
        taken = max(fitting, key=lambda group: (group.per_byte, group.name))
        chosen += taken.members
        room_bytes -= taken.size_bytes
        first = taken.members[0]
        if left.pop(first.name, None) is not None:
            open_adapters += adapters[first.name]
        open_adapters = [each for each in open_adapters if each not in taken.members and each.size_bytes <= room_bytes]


def _best_prefix(base: Candidate, adapters: Iterable[Candidate], room_bytes: int) -> _Group:
    """Return a base with those of its adapters that raise its ratio, best first, as far as there is room."""
    group = _Group((base,))
    for adapter in sorted(adapters, key=_ratio, reverse=True):
        larger = _Group((*group.members, adapter))
        if larger.per_byte <= group.per_byte:
            break
        if larger.size_bytes <= room_bytes:
            group = larger
    return group


def _filled(base: Candidate, adapters: Iterable[Candidate], room_bytes: int) -> tuple[Candidate, ...]:
    """Return a base with its adapters, those of the most worth first, as many as there is room for."""
    if base.size_bytes > room_bytes:
        return ()
    members, room_bytes = [base], room_bytes - base.size_bytes
    for adapter in sorted(adapters, key=lambda each: each.worth, reverse=True):
        if adapter.size_bytes <= room_bytes:
            members.append(adapter)
            room_bytes -= adapter.size_bytes
    return tuple(members)


def _ratio(candidate: Candidate) -> float:
    return candidate.worth / max(1, candidate.size_bytes)


def _worth(candidates: Iterable[Candidate]) -> float:
    return sum(each.worth for each in candidates)
