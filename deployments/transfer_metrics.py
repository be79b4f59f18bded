"""What is counted of transfers to a device: how often, by the way that host memory took; exported by Ray."""

from collections.abc import Iterable, Mapping
from functools import cache

from ray.util.metrics import Counter


@cache
def _transfers() -> Counter:
    return Counter(
        "flashserve_device_transfers_total",
        "Wakes from host memory by path: registered (locked, copied from directly), or ring (of buffers).",
        ("model", "path"),
    )


def count_transfers(model_id: str, stages: Iterable[Mapping[str, float]]) -> None:
    """Count what each worker of an engine says of its wake; workers that copied nothing to a device say nothing."""
    for worker in stages:
        if "registered" in worker:
            path = "registered" if worker["registered"] else "ring"
            _transfers().inc(1, {"model": model_id, "path": path})
