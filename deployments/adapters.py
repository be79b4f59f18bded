"""Integer ids for adapters inside one engine.

vLLM trusts the integer id it is given and hashes prefix-cache blocks by adapter name only. So the replica, which every
gateway's requests pass through, numbers adapters itself, and inside the engine an adapter is called
``tenant/id@digest``, the operator's own ``id@digest``: new content is a new name and a new id, and never meets the old
one's cache; nor do two tenants' adapters that are called the same, or are the same.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from deployments.adapter_rows import adapter_key
from deployments.types import AdapterRef, AdapterSpec
from deployments.wire import AdapterNews

# A copy within the engine's memory; of the others, before any was measured.
HOST_S, DRAM_S, ELSEWHERE_S = 0.002, 0.01, 0.1
# Of each place; news are sent whenever they change.
MAX_TOLD = 256
_SMOOTHING = 0.3


@dataclass(frozen=True)
class AdapterPlaces:
    """Where adapters are that an engine can be asked for, by digest, and the seconds that one takes from there.

    ``slots`` are what it computes from; ``host`` is its own cache, ``dram`` the node's.
    """

    slots: frozenset[str] = frozenset()
    host: frozenset[str] = frozenset()
    dram: frozenset[str] = frozenset()
    dram_s: float = DRAM_S
    elsewhere_s: float = ELSEWHERE_S

    def news(self) -> AdapterNews:
        """Return what gateways are told of it: each adapter where it is nearest, and no more than they need."""
        return AdapterNews(
            HOST_S,
            # So that a little more or less is no news.
            round(self.dram_s, 3),
            round(self.elsewhere_s, 2),
            _told(self.slots),
            _told(self.host - self.slots),
            _told(self.dram - self.host - self.slots),
        )


def _told(digests: Collection[str]) -> list[int]:
    return sorted(map(adapter_key, digests))[:MAX_TOLD]


class LoadTimes:
    """How long adapters take to be loaded lately, in seconds."""

    def __init__(self) -> None:
        self.dram_s = DRAM_S
        self.elsewhere_s = ELSEWHERE_S

    def measured(self, seconds: float, *, from_dram: bool) -> None:
        """Take a measurement."""
        if from_dram:
            self.dram_s += _SMOOTHING * (seconds - self.dram_s)
        else:
            self.elsewhere_s += _SMOOTHING * (seconds - self.elsewhere_s)


class AdapterTable:
    """Gives each (adapter, content) a positive integer id that is never used again for anything else."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._digests: dict[int, str] = {}

    def int_id(self, adapter: AdapterRef) -> int:
        """Return the adapter's id, handing out the next one on first sight."""
        int_id = self._ids.setdefault(engine_name(adapter), len(self._ids) + 1)
        self._digests[int_id] = adapter["digest"]
        return int_id

    def digests(self, int_ids: Iterable[int]) -> frozenset[str]:
        """Return what is in the adapters of these ids."""
        return frozenset(self._digests[int_id] for int_id in int_ids if int_id in self._digests)

    def names(self) -> dict[int, str]:
        """Return the names inside the engine by id."""
        return {number: name for name, number in self._ids.items()}

    def __repr__(self) -> str:
        return f"<AdapterTable {len(self._ids)} adapters>"


def qualified(adapter: AdapterRef) -> str:
    """Return the adapter's name with its owner's; content aside, no two adapters of a model have the same."""
    owner = adapter.get("owner")
    return f"{owner}/{adapter['id']}" if owner else adapter["id"]


def engine_name(adapter: AdapterRef) -> str:
    """Return the name the adapter has inside an engine."""
    return f"{qualified(adapter)}@{adapter['digest'][:16]}"


def ref_of(adapter: AdapterSpec) -> AdapterRef:
    """Return an adapter as requests name it."""
    return {"id": adapter.id, "path": adapter.path, "digest": adapter.digest, "owner": adapter.owner}
