"""A pool of two nodes grows ahead of a demand that is known from the past, and shrinks after it. Nobody asks anything.

The past is imported: two requests a second for two minutes, every twenty, for two days. The next time begins soon after
the service is there.
"""

import csv
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.machines import Machines, can_be_played, machines
from tests.support.ray_head import command
from tests.support.service import CHAT_MODEL, demo_args
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(not can_be_played(), reason="no process and mount namespaces here"),
    pytest.mark.timeout(900),
]

BUCKET_S, PERIOD_S, PAST_S = 120, 1200, 2 * 86400
PER_S = 2
# At least; the service is there long before.
BEGINS_IN_S = 420
# What a replica takes at most, on a node that never had one: within the time that its demand would last.
STARTS_IN_S = 100


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as made:
        yield made


def write_log(path: Path, next_begin_s: int) -> None:
    """A request a line, as logs have them."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["timestamp", "model"])
        for begin_s in range(next_begin_s - PAST_S, next_begin_s, PERIOD_S):
            lines.writerows([begin_s + second, CHAT_MODEL] for second in range(BUCKET_S) for _ in range(PER_S))


def running(cluster: Machines) -> int:
    """Replicas of the pool that run."""
    token = cluster.service.environment["RAY_AUTH_TOKEN"]
    answer = httpx.get(
        f"{cluster.service.dashboard}/api/serve/applications/", headers={"Authorization": f"Bearer {token}"}, timeout=60
    )
    told: Any = answer.raise_for_status().json()["applications"]
    replicas = [
        replica
        for application in told.values()
        for name, deployment in application["deployments"].items()
        if name.startswith("Engines-")
        for replica in deployment["replicas"]
    ]
    return sum(replica["state"] == "RUNNING" for replica in replicas)


def wanted(cluster: Machines, by: str) -> float:
    text = httpx.get(f"{cluster.service.url}/metrics", timeout=60).text
    lines = [line for line in text.splitlines() if line.startswith("ray_flashserve_scaling_replicas{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if f'by="{by}"' in line)


def test_a_pool_grows_before_the_demand_and_shrinks_after_it(cluster: Machines, tmp_path: Path) -> None:
    begin_s = ((int(time.time()) + BEGINS_IN_S) // BUCKET_S + 1) * BUCKET_S
    write_log(tmp_path / "log.csv", begin_s)
    subprocess.run(
        [command("flashserve"), "history", "import", "log.csv", "--dir", cluster.service.directory / "disk"],
        env=cluster.service.environment, cwd=tmp_path, check=True,
    )  # fmt: skip
    cluster.join()
    cluster.join()
    models = [model for model in demo_args()["models"] if model["id"] == CHAT_MODEL]
    pools = [{"min_replicas": 1, "max_replicas": 2, "max_replicas_per_node": 1, "num_cpus": 1}]
    autoscaling = {
        "target_ongoing_requests": 1, "season_bucket_s": BUCKET_S, "downscale_s": 30, "neural": False,
    }  # fmt: skip
    cluster.deploy(demo_args(models=models, pools=pools, autoscaling=autoscaling))
    assert time.time() < begin_s - STARTS_IN_S, "the service took too long to come"
    # What gateways ask when they come is load too, where a replica is for one request at a time.
    until(lambda: running(cluster) == 1, begin_s - STARTS_IN_S - time.time())

    until(lambda: wanted(cluster, "forecast") == 2, begin_s - time.time())
    assert wanted(cluster, "load") == 0
    until(lambda: running(cluster) == 2, STARTS_IN_S)
    print(f"two replicas run {begin_s - time.time():.0f} s before the demand was to begin")
    # It needs both as long as the demand would last, and one when it is over.
    until(lambda: running(cluster) == 1, begin_s + 2 * BUCKET_S - time.time())
    print(f"one is left {time.time() - begin_s:.0f} s after the demand was to begin")
    assert time.time() > begin_s + BUCKET_S / 2
