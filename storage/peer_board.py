"""What a node that fills a snapshot has of it, what is on its way, and what it knows of its peers.

Covers: the books between two decisions of ``peer_plan``. Does not cover: moving bytes, locks (``peer_folder``).
"""

from collections import Counter
from collections.abc import Iterable

from storage.peer import Progress
from storage.peer_plan import Fellow, Fetch, Limits, Nothing, Situation, choose, choose_now


class Board:
    """The books of one snapshot with ``count`` chunks; not thread-safe. Times are of the monotonic clock."""

    def __init__(self, me: str, count: int, limits: Limits, *, content: str, has_source: bool) -> None:
        self.me = me
        self.version = 1
        self._count = count
        self._limits = limits
        self._content = content
        self._has_source = has_source
        self._have: set[int] = set()
        self._todo: set[int] = set()
        self._claims: Counter[int] = Counter()
        self._busy: Counter[str] = Counter()
        self._fellows: dict[str, Fellow] = {}
        self._moved: dict[str, int] = {}
        self._lost: set[str] = set()
        self._moved_bytes = 0
        self._idle_since_s: float | None = None

    def wants(self, chunks: Iterable[int]) -> None:
        """Begin to hand these out."""
        self._todo = set(chunks)

    def take(self, now_s: float) -> Fetch | Nothing | None:
        """Hand out the next fetch, or say why there is none; None when everything has been handed out."""
        if not self._todo:
            return None
        found = choose(self._situation(frozenset(self._todo)), self._limits, now_s)
        if isinstance(found, Fetch):
            self._todo.discard(found.chunk)
            self._idle_since_s = None
            self._begin(found)
        elif self._idle_since_s is None and not self._under_way():
            self._idle_since_s = now_s
        return found

    def take_now(self, chunk: int, now_s: float) -> Fetch | Nothing:
        """Hand out a fetch of ``chunk``, from whoever can give it."""
        found = choose_now(self._situation(frozenset({chunk})), self._limits, chunk, now_s)
        if isinstance(found, Fetch):
            self._begin(found)
        return found

    def ended(self, fetch: Fetch, *, here: bool) -> None:
        """Note that a fetch is over, and whether the chunk is here now."""
        if fetch.claims:
            self._claims = self._claims - Counter([fetch.chunk])
        if fetch.peer is not None:
            self._busy = self._busy - Counter([fetch.peer])
        if here:
            self._have.add(fetch.chunk)
        self.version += 1

    def moved(self, size_bytes: int) -> None:
        """Note that bytes have come."""
        self._moved_bytes += size_bytes

    def heard(self, peer: str, progress: Progress, now_s: float) -> None:
        """Take in how far a peer is, unless it is one that was lost."""
        if peer in self._lost:
            return
        known = self._fellows.get(peer)
        if known is None or self._moved[peer] != progress.moved_bytes or known.have != progress.have:
            progressed_s = now_s
        else:
            progressed_s = known.progressed_s
        self._moved[peer] = progress.moved_bytes
        self._fellows[peer] = Fellow(
            peer, progress.whole, progress.have, progress.claimed, progress.reaches_root, progressed_s
        )

    def forget(self, peer: str) -> None:
        """Note that a peer has nothing to do with the snapshot."""
        self._fellows.pop(peer, None)

    def lose(self, peer: str) -> bool:
        """Never ask a peer again; tells whether that is news."""
        self._fellows.pop(peer, None)
        news = peer not in self._lost
        self._lost.add(peer)
        return news

    def is_lost(self, peer: str) -> bool:
        """Tell whether a peer was lost."""
        return peer in self._lost

    def knows(self, peer: str) -> bool:
        """Tell whether a peer has something of the snapshot, or fills it."""
        return peer in self._fellows

    def has_root(self) -> bool:
        """Tell whether a peer has it whole."""
        return any(fellow.whole for fellow in self._fellows.values())

    def progress(self) -> Progress:
        """Return what this node tells its peers."""
        return Progress(
            content=self._content,
            whole=False,
            have=frozenset(self._have),
            claimed=frozenset(self._claims),
            reaches_root=self._has_source or self.has_root(),
            moved_bytes=self._moved_bytes,
            version=self.version,
        )

    def has(self, chunk: int) -> bool:
        """Tell whether a chunk is here, checked."""
        return chunk in self._have

    def _begin(self, fetch: Fetch) -> None:
        if fetch.claims:
            self._claims[fetch.chunk] += 1
        if fetch.peer is not None:
            self._busy[fetch.peer] += 1
        self.version += 1

    def _under_way(self) -> bool:
        return bool(self._claims or self._busy)

    def _situation(self, missing: frozenset[int]) -> Situation:
        return Situation(
            me=self.me,
            missing=missing,
            fellows=tuple(self._fellows.values()),
            claimed=frozenset(self._claims),
            busy=self._busy,
            has_source=self._has_source,
            idle_since_s=self._idle_since_s,
        )

    def __repr__(self) -> str:
        return f"<Board {len(self._have)} of {self._count} chunks, {len(self._fellows)} peers>"
