"""A model as it is served, with the engines there may be of it: everybody's, and tenants' own.

A tenant that the model's ``own_engines`` name shares no process with others: its requests are computed in an engine
that nobody else's reach, from the one copy of the base weights that the node or its GPU has (isolated functions on a
shared backbone, ServerlessLoRA, section 4). To everything below the gateway such an engine is a model like any other,
with an id that no model can be given.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from deployments.types import ModelSpec


@dataclass(frozen=True)
class Entry:
    """A model as it is served.

    ``spec`` is for replicas, ``frontend`` (arguments of vLLM's API server) for gateways, ``pool`` the name of the pool
    that hosts it, and ``given`` its section of the configuration. Adapters that aren't known are looked for in
    ``lora_source``, a directory or a URL, but for those named in ``removed``. ``own_engines`` are the tenants that have
    one of their own.
    """

    spec: ModelSpec
    frontend: dict[str, Any]
    pool: str
    given: dict[str, Any]
    lora_source: str = ""
    removed: tuple[str, ...] = ()
    own_engines: tuple[str, ...] = ()

    def engine_id(self, tenant: str) -> str:
        """Return the id of the engine that a tenant's requests go to; ids of models hold no ``@``."""
        return f"{self.spec.id}@{tenant}" if tenant in self.own_engines else self.spec.id

    def tenants_specs(self) -> dict[str, ModelSpec]:
        """Return what to host for the tenants with an engine of their own, by tenant: with no adapters but theirs."""
        return {
            tenant: replace(
                self.spec,
                id=self.engine_id(tenant),
                adapters=tuple(adapter for adapter in self.spec.adapters if adapter.owner in {None, tenant}),
                shares_weights=True,
            )
            for tenant in self.own_engines
        }

    def engines(self) -> list[ModelSpec]:
        """Return all that there may be."""
        return [self.spec, *self.tenants_specs().values()]


def everybodys(spec: ModelSpec, own_engines: Collection[str]) -> ModelSpec:
    """Return what everybody's engine is started with where these tenants have one of their own.

    On a CPU they compute from the node's copy of the weights, which everybody's faster engine has no use for. On a GPU
    there is no such copy: the weights that they share are those of everybody's engine.
    """
    return replace(spec, shares_weights=spec.device != "cpu" and bool(own_engines))


def without_adapters(entry: Entry | None) -> Entry | None:
    """Return what a gateway's part for a model is built from: adapters come and go without another."""
    return None if entry is None else replace(entry, spec=replace(entry.spec, adapters=()), removed=())


def by_engine(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return the models by the ids of their engines."""
    return {spec.id: entry for entry in entries for spec in entry.engines()}
