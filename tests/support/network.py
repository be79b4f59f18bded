"""A network of machines on one machine: addresses of their own, behind a bridge, that can be cut off from each other.

What is cut off loses packets silently, as behind a broken switch or when the power goes: nothing is refused, no
connection ends. The one address sends what is meant for the other to a hardware address that nobody has. Takes root.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SUBNET = "10.213.77"
HOST = f"{SUBNET}.1"
NOBODY = "02:00:00:00:00:ff"
_PROBE = "ip link add br0 type bridge && ip link add veth0 type veth peer name veth1"


def can_be_networked() -> bool:
    """Whether this machine lets the test have networks."""
    if shutil.which("ip") is None or shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    probe = subprocess.run(["unshare", "--net", "sh", "-c", _PROBE], check=False, capture_output=True)
    return probe.returncode == 0


class Network:
    """A bridge on this machine, which has the address ``HOST`` there."""

    def __init__(self) -> None:
        self._bridge = f"fs{os.getpid()}"
        self._spaces: dict[str, str] = {}
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{HOST}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def add(self) -> tuple[str, list[str]]:
        """Return a new address, and what a command that is to have it is run by."""
        number = len(self._spaces) + 2
        address, space, link = f"{SUBNET}.{number}", f"{self._bridge}-{number}", f"{self._bridge}v{number}"
        _ip("netns", "add", space)
        self._spaces[address] = space
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", self._bridge, "up")
        for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _ip("-n", space, *command.split())
        return address, ["nsenter", f"--net=/run/netns/{space}"]

    def cut(self, one: str, other: str) -> None:
        """Let nothing through between two addresses, either way."""
        self._neighbour(one, "replace", other, "lladdr", NOBODY, "nud", "permanent")
        self._neighbour(other, "replace", one, "lladdr", NOBODY, "nud", "permanent")

    def mend(self, one: str, other: str) -> None:
        """Undo ``cut``."""
        self._neighbour(one, "del", other)
        self._neighbour(other, "del", one)

    def close(self) -> None:
        """Remove it all; whatever runs there has ended."""
        for space in self._spaces.values():
            _ip("netns", "del", space)
        _ip("link", "del", self._bridge)

    def _neighbour(self, at: str, do: str, other: str, *what: str) -> None:
        where = [] if at == HOST else ["-n", self._spaces[at]]
        _ip(*where, "neigh", do, other, *what, "dev", self._bridge if at == HOST else "eth0")


@contextmanager
def network() -> Iterator[Network]:
    made = Network()
    try:
        yield made
    finally:
        made.close()


def _ip(*what: str) -> None:
    arguments: Sequence[str] = ("ip", *what)
    subprocess.run(arguments, check=True, capture_output=True)
