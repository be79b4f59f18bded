"""Which chunk of a snapshot a node fetches next, and from whom: one pure decision, made by every node for itself.

What nobody has yet comes from a root: a peer that has the snapshot whole, or where there is none the source. Nodes that
fill at the same time divide the chunks among themselves, each brings its own share from a root, and gets the others'
shares from them as they arrive, so a root is read about once however many they are. A share is only a first word: what
a node is bringing it claims, others leave claimed chunks alone, and who has nothing to do helps with what is left.
Nobody coordinates. Nodes that see each other late do some work twice, never not at all.
"""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True)
class Fellow:
    """A peer that has the snapshot, or fills it, as it was last heard of.

    ``claimed`` are the chunks that it is bringing from a root. ``progressed_s`` is when it last got on.
    """

    id: str
    whole: bool = False
    have: frozenset[int] = frozenset()
    claimed: frozenset[int] = frozenset()
    reaches_root: bool = True
    progressed_s: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Reads at once, in all and from one peer.

    ``patience_s`` is given to a peer that gets nowhere; who has had nothing to do for ``help_after_s`` helps others.
    """

    at_once: int = 4
    per_peer: int = 2
    patience_s: float = 10.0
    help_after_s: float = 0.5


@dataclass(frozen=True)
class Situation:
    """What one node knows.

    ``missing`` chunks are neither here nor on their way, ``claimed`` ones on their way from a root; ``busy`` counts
    this node's reads from each peer; since ``idle_since_s`` it has had nothing to do.
    """

    me: str
    missing: frozenset[int]
    fellows: tuple[Fellow, ...] = ()
    claimed: frozenset[int] = frozenset()
    busy: Mapping[str, int] = field(default_factory=dict)
    has_source: bool = True
    idle_since_s: float | None = None


@dataclass(frozen=True)
class Fetch:
    """Get ``chunk`` from ``peer``, or with None from the source; ``claims`` says that it comes from a root."""

    chunk: int
    peer: str | None
    claims: bool = True


class Nothing(Enum):
    """Why there is nothing to fetch now: it will come, or nobody is left who could give it."""

    YET = "yet"
    EVER = "ever"


def choose(situation: Situation, limits: Limits, now_s: float) -> Fetch | Nothing:
    """Return what to fetch next."""
    fillers = [fellow for fellow in situation.fellows if not fellow.whole]
    moving = _moving(situation, limits, now_s)
    held = frozenset().union(*(fellow.have for fellow in fillers))
    left = situation.missing - held - frozenset().union(*(fellow.claimed for fellow in moving))
    return (
        _own_share(situation, limits, moving, left)
        or _from_filler(situation, limits, fillers, situation.missing & held)
        or _helping(situation, limits, left, now_s)
        or (Nothing.YET if _roots(situation) or moving or situation.busy else Nothing.EVER)
    )


def choose_now(situation: Situation, limits: Limits, chunk: int, now_s: float) -> Fetch | Nothing:
    """Return from whom to fetch ``chunk`` at once, whoever's share it is: from who has it, or from the source."""
    holders = [fellow for fellow in situation.fellows if fellow.whole or chunk in fellow.have]
    free = _free(situation, limits, holders)
    if free:
        fellow = min(free, key=lambda fellow: _rank(situation, fellow.id, chunk))
        return Fetch(chunk, fellow.id, fellow.whole)
    if situation.has_source:
        return Fetch(chunk, None)
    return Nothing.YET if holders or _moving(situation, limits, now_s) else Nothing.EVER


def _own_share(situation: Situation, limits: Limits, moving: Collection[Fellow], left: Collection[int]) -> Fetch | None:
    """Fetch the first chunk of the own share; all who share read from roots as much at once as one alone would."""
    sharing = sorted([situation.me, *(fellow.id for fellow in moving if fellow.reaches_root)])
    if len(situation.claimed) >= max(1, limits.at_once // len(sharing)):
        return None
    mine = sharing.index(situation.me)
    own = min((chunk for chunk in left if chunk % len(sharing) == mine), default=None)
    return None if own is None else _from_root(situation, limits, own)


def _from_filler(
    situation: Situation, limits: Limits, fillers: Collection[Fellow], wanted: Collection[int]
) -> Fetch | None:
    """Fetch what fewest have, so that it spreads; of equals each node begins with another one."""
    free = _free(situation, limits, fillers)
    offers: dict[int, list[str]] = {}
    for fellow in free:
        for chunk in fellow.have.intersection(wanted):
            offers.setdefault(chunk, []).append(fellow.id)
    if not offers:
        return None
    chunk = min(offers, key=lambda chunk: (len(offers[chunk]), _spread(situation.me, "", chunk)))
    return Fetch(chunk, min(offers[chunk], key=lambda peer: _rank(situation, peer, chunk)), claims=False)


def _helping(situation: Situation, limits: Limits, left: Collection[int], now_s: float) -> Fetch | None:
    """Fetch a chunk of another's share that is still to be begun, after some time with nothing else to do."""
    if not left or situation.idle_since_s is None or now_s - situation.idle_since_s < limits.help_after_s:
        return None
    return _from_root(situation, limits, min(left, key=lambda chunk: _spread(situation.me, "", chunk)))


def _from_root(situation: Situation, limits: Limits, chunk: int) -> Fetch | None:
    whole = [fellow for fellow in situation.fellows if fellow.whole]
    if whole:
        free = _free(situation, limits, whole)
        peers = [fellow.id for fellow in free]
        return Fetch(chunk, min(peers, key=lambda peer: _rank(situation, peer, chunk))) if peers else None
    return Fetch(chunk, None) if situation.has_source else None


def _moving(situation: Situation, limits: Limits, now_s: float) -> list[Fellow]:
    fillers = (fellow for fellow in situation.fellows if not fellow.whole)
    return [fellow for fellow in fillers if now_s - fellow.progressed_s <= limits.patience_s]


def _roots(situation: Situation) -> bool:
    return situation.has_source or any(fellow.whole for fellow in situation.fellows)


def _free(situation: Situation, limits: Limits, fellows: Collection[Fellow]) -> list[Fellow]:
    return [fellow for fellow in fellows if situation.busy.get(fellow.id, 0) < limits.per_peer]


def _rank(situation: Situation, peer: str, chunk: int) -> tuple[int, int]:
    return situation.busy.get(peer, 0), _spread(situation.me, peer, chunk)


def _spread(me: str, peer: str, chunk: int) -> int:
    """Return a number that has nothing to do with any other's: so nodes don't all want the same of the same one."""
    return zlib.crc32(f"{me} {peer} {chunk}".encode())
