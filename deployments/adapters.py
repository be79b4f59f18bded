"""Integer ids for adapters inside one engine.

vLLM trusts the integer id it is given and hashes prefix-cache blocks by adapter name only. So the replica, which every
gateway's requests pass through, numbers adapters itself, and inside the engine an adapter is called
``tenant/id@digest``, the operator's own ``id@digest``: new content is a new name and a new id, and never meets the old
one's cache; nor do two tenants' adapters that are called the same, or are the same.
"""

from deployments.types import AdapterRef, AdapterSpec


class AdapterTable:
    """Gives each (adapter, content) a positive integer id that is never used again for anything else."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def int_id(self, adapter: AdapterRef) -> int:
        """Return the adapter's id, handing out the next one on first sight."""
        return self._ids.setdefault(engine_name(adapter), len(self._ids) + 1)

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
