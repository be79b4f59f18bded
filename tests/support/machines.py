"""Machines on one machine: nodes of a Ray cluster with processes and disks of their own, which can be lost at once.

Each is a process namespace with a mount namespace in which the directories of the application's storage are its own,
which takes root, or a kernel that gives such namespaces to everybody. Memory and processors are shared, and so is the
network unless they have one (``network``).
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.support.network import HOST, Network
from tests.support.ray_head import RayHead, command, free_port, ray_head
from tests.support.service import Service, clean_environment, serve_config, wait_until_there

# A process namespace needs a /proc of its own, for Ray and FlashServe look their processes up there.
NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
TIERS = ("disk", "dram")
GATEWAY, HERE = "gateway", {"gateway": 1}


def can_be_played() -> bool:
    """Whether this machine lets the test have namespaces."""
    return shutil.which("unshare") is not None and subprocess.run([*NAMESPACES, "true"], check=False).returncode == 0


@dataclass
class Machine:
    """A node with one processor to reserve; ``process`` holds all others of it, ``address`` is its own in a network."""

    process: subprocess.Popen[bytes]
    directory: Path
    address: str | None

    def lose(self) -> None:
        """End all its processes at once, as when the power goes."""
        for child in psutil.Process(self.process.pid).children():
            child.kill()
        self.process.wait(30)


class Machines:
    """A cluster whose head has gateways and no engines."""

    def __init__(
        self, service: Service, head: RayHead, root: Path, running: ExitStack, network: Network | None
    ) -> None:
        self.service = service
        self.head = head
        self._root = root
        self._running = running
        self._network = network
        self._joined = 0

    def join(self, cut_from: Sequence[Machine] = ()) -> Machine:
        """Add a node whose disk and memory hold nothing; return when Ray runs on it.

        In a network, it can't reach those that it is ``cut_from``, from its beginning.
        """
        self._joined += 1
        address, within = self._network.add() if self._network else (None, [])
        for other in cut_from:
            self._cut(address, other.address)
        own = self._root / f"machine-{self._joined}"
        for tier in TIERS:
            (own / tier).mkdir(parents=True)
        mounts = " && ".join(f"mount --bind {own / tier} {self.service.directory / tier}" for tier in TIERS)
        ports = " ".join(f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "metrics-export-port"))
        start = (
            f"exec {command('ray')} start --block --address={self.service.ray_address} --num-cpus=1 {ports}"
            " --min-worker-port=0 --max-worker-port=0 --disable-usage-stats"
            f"{f' --node-ip-address={address}' if address else ''}"
        )
        log = self._running.enter_context((own / "log.txt").open("wb"))
        process = subprocess.Popen(
            [*within, *NAMESPACES, "bash", "-c", f"{mounts} && {start}"],
            env=self.service.environment, cwd=own, start_new_session=True, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        machine = Machine(process, own, address)
        self._running.callback(_end, machine)
        # One after the other: Ray looks for free ports and then takes them.
        log_file = own / "log.txt"
        wait_until_there(lambda: "runtime started" in log_file.read_text(), psutil.Process(process.pid), "a machine")
        return machine

    def cut(self, machine: Machine) -> None:
        """Let nothing through between a machine and the head."""
        self._cut(HOST, machine.address)

    def _cut(self, one: str | None, other: str | None) -> None:
        assert self._network is not None, "these machines have no network of their own"
        assert one is not None
        assert other is not None
        self._network.cut(one, other)

    def restart_head(self) -> None:
        """Lose the head, and start it again where it was."""
        self.head.lose()
        self.head.start()
        self.service = replace(self.service, ray_process=self.head.process)

    def deploy(self, args: dict[str, Any]) -> None:
        """Deploy with ``serve deploy``, gateway and proxy on the head, and wait until the service answers."""
        port = int(self.service.url.rpartition(":")[2])
        storage = {f"{tier}_dir": f"{self.service.directory / tier}" for tier in TIERS}
        document = serve_config(port, args | {"storage": storage, GATEWAY: {"resources": {GATEWAY: 0.01}}})
        config = self.service.directory / "config.yaml"
        # Of several proxies on one machine only one could have the port.
        config.write_text(yaml.safe_dump({"proxy_location": "HeadOnly"} | document))
        subprocess.run(
            [command("serve"), "deploy", str(config), "--address", self.service.dashboard],
            cwd=self.service.directory, env=self.service.environment, check=True,
        )  # fmt: skip
        self.wait_until_served()

    def wait_until_served(self) -> None:
        """Return when the service answers."""
        wait_until_there(
            lambda: httpx.get(f"{self.service.url}/health", timeout=30).is_success,
            self.service.ray_process,
            "the service",
        )


def _end(machine: Machine) -> None:
    if machine.process.poll() is None:
        machine.lose()


@contextmanager
def machines(network: Network | None = None, **of_the_head: str) -> Iterator[Machines]:
    """A head, with more in its environment, to which machines join, in ``network``; all end with it."""
    surroundings = clean_environment()
    with tempfile.TemporaryDirectory(prefix="fs-", dir="/tmp") as name, ExitStack() as running:
        directory = Path(name) / "application"
        for tier in TIERS:
            (directory / tier).mkdir(parents=True)
        head = running.enter_context(
            # One that comes back must not see the machines' processes: it would take the cluster for running.
            ray_head(
                surroundings | of_the_head,
                *("--num-cpus=0", "--resources", '{"gateway": 1}'),
                within=NAMESPACES,
                host=HOST if network else None,
            )
        )
        wait_until_there(lambda: httpx.get(head.dashboard).status_code > 0, head.process, "the Ray dashboard")
        url = f"http://127.0.0.1:{free_port()}"
        service = Service(url, head.address, head.dashboard, head.process, surroundings, directory, head.logs)
        yield Machines(service, head, Path(name), running, network)
