"""Nodes ahead of demand: what the forecast needs beyond the nodes there are is asked of Ray's autoscaler, in time.

Covers: whether replicas that are to come fit the nodes there are, what to ask for, withdrawing it. Does not cover:
starting replicas (Serve). A request to Ray's autoscaler is one for the whole cluster and stands until it is replaced:
so nobody else's is touched until something doesn't fit, and a file remembers what a process that died had asked.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Bundle = dict[str, float]
Ask = Callable[[Sequence[Bundle]], None]


def bundles_for(need: Mapping[str, int], pools: Mapping[str, Bundle]) -> list[Bundle]:
    """Return a bundle for each replica that is needed, largest first, by what a replica of its pool asks of Ray."""
    found = [
        {name: amount for name, amount in pools[pool].items() if amount > 0}
        for pool, number in need.items()
        if pool in pools
        for _ in range(number)
    ]
    return sorted((each for each in found if each), key=_size, reverse=True)


def fit(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Tell whether the bundles, largest first, find room on the nodes, each on the first that has some (first fit).

    ``nodes`` are what the nodes have in all: what runs there is among the bundles.
    """
    left = [dict(node) for node in nodes]
    for bundle in bundles:
        room = next((node for node in left if all(node.get(name, 0.0) >= each for name, each in bundle.items())), None)
        if room is None:
            return False
        for name, amount in bundle.items():
            room[name] -= amount
    return True


class NodesAhead:
    """Asks when the need has outgrown the nodes, and withdraws when it has not any more."""

    def __init__(
        self, marker: Path, ask: Ask | None = None, nodes: Callable[[], Sequence[Bundle]] | None = None
    ) -> None:
        """``marker`` is there while something is asked; ``ask`` and ``nodes`` are Ray's unless others are given."""
        self._marker = marker
        self.pools: Mapping[str, Bundle] = {}
        """By pool, what a replica asks of Ray, by Ray's names of resources."""
        self.asked: list[Bundle] = []
        """What is asked of Ray's autoscaler now; empty if nothing."""
        self._ask = ask or _ask_ray
        self._nodes = nodes or _ray_nodes

    def follow(self, need: Mapping[str, Sequence[int]]) -> None:
        """Go by what pools need in each step from now on: the most of it within the horizon. Blocking."""
        wanted = bundles_for({pool: max(steps, default=0) for pool, steps in need.items()}, self.pools)
        beyond = bool(wanted) and not fit(wanted, self._nodes())
        if beyond and wanted != self.asked:
            self._marker.touch()
            self._ask(wanted)
            self.asked = wanted
        elif not beyond:
            self.withdraw()

    def withdraw(self) -> None:
        """Ask for nothing more."""
        if self.asked or self._marker.exists():
            self._ask([])
            self.asked = []
            self._marker.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<NodesAhead, {len(self.asked)} bundles asked for>"


def _size(bundle: Bundle) -> tuple[float, float]:
    return bundle.get("GPU", 0.0), sum(bundle.values())


def _ask_ray(bundles: Sequence[Bundle]) -> None:
    from ray.autoscaler.sdk import request_resources  # noqa: PLC0415 - not needed where nothing outgrows its nodes

    request_resources(bundles=list(bundles))


def _ray_nodes() -> list[Bundle]:
    import ray  # noqa: PLC0415

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
