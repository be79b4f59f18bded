"""Integer ids for adapters inside one engine.

vLLM trusts the integer id it is given and hashes prefix-cache blocks by adapter name only. So the replica, which every
gateway's requests pass through, numbers adapters itself, and inside the engine an adapter is called
``tenant/id@digest``, the operator's own ``id@digest``: new content is a new name and a new id, and never meets the old
one's cache; nor do two tenants' adapters that are called the same, or are the same.
"""

from deployments.types import AdapterRef


class AdapterTable:
    """Gives each (adapter, content) a positive integer id that is never used again for anything else."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def engine_name(self, adapter: AdapterRef) -> str:
        """Return the name the adapter has inside the engine."""
        name, owner = f"{adapter['id']}@{adapter['digest'][:16]}", adapter.get("owner")
        return f"{owner}/{name}" if owner else name

    def int_id(self, adapter: AdapterRef) -> int:
        """Return the adapter's id, handing out the next one on first sight."""
        return self._ids.setdefault(self.engine_name(adapter), len(self._ids) + 1)

    def __repr__(self) -> str:
        return f"<AdapterTable {len(self._ids)} adapters>"
