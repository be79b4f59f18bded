"""How an engine that has run on this node is started again, and taking over one that was: a replica's side.

A replica tells its node how it starts a model's engine from the snapshot. The node can then have the same done ahead of
a replica that is only coming up (``engines_ahead``), which takes the engine over: it gets its addresses and, as a
descriptor, its life line. Both go over a Unix socket beside the pool's own; what is unpickled is one's own, as there.
"""

import asyncio
import hashlib
import json
import logging
import os
import pickle
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deployments.forked_engine import ForkedEngine, PoolAddress
from deployments.pool_wire import Surroundings, pack_frame, receive_frame
from deployments.types import ModelSpec

# As long as an engine that has only just begun to start may take.
CLAIM_TIMEOUT_S = 300.0
_SNAPSHOT_OPTIONS = "model_loader_extra_config"
# What replicas of one node may differ in, besides their models: devices and threads. Others vLLM sets as it goes.
_JUDGED = ("CUDA_", "NVIDIA_", "OMP_", "VLLM_CPU_")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a model's engine is started from its snapshot, wherever on the node that is.

    ``key`` is what it has in common with engines that it can stand in for, ``engine`` as in ``EngineRequest``.
    """

    model_id: str
    key: str
    surroundings: Surroundings
    engine: bytes
    snapshot_id: str


@dataclass(frozen=True)
class Claim:
    """What a replica asks: whether there is an engine with this key."""

    model_id: str
    key: str


def key_of(spec: ModelSpec, environment: Mapping[str, str]) -> str:
    """Return what engines have in common that can stand in for each other: all but where their snapshot is.

    Empty if none can for this one, for it is not started from a snapshot.
    """
    options = spec.engine.get(_SNAPSHOT_OPTIONS)
    if not isinstance(options, dict) or not options.keys() & {"snapshot", "snapshot_in"}:
        return ""
    judged = replace(spec, engine={name: value for name, value in spec.engine.items() if name != _SNAPSHOT_OPTIONS})
    settings = sorted(item for item in environment.items() if item[0].startswith(_JUDGED))
    return hashlib.sha256(repr((judged.revision, settings)).encode()).hexdigest()


def ahead_path(pool: PoolAddress) -> Path:
    """Return the socket at which the node hears of recipes and claims."""
    return Path(pool.socket_path).with_name("ahead")


async def remember(pool: PoolAddress, recipe: Recipe) -> None:
    """Tell the node how an engine was started; without anybody who listens, nothing happens."""
    try:
        await asyncio.to_thread(_tell, ahead_path(pool), recipe)
    except OSError as error:
        logger.info("no engine of %s will be forked ahead: %s", recipe.model_id, error)


async def claim(pool: PoolAddress, spec: ModelSpec) -> ForkedEngine | None:
    """Take over the engine of ``spec`` that was forked ahead, waiting until it serves; None if there is none."""
    key = key_of(spec, os.environ)
    if not key:
        return None
    asking = asyncio.ensure_future(asyncio.to_thread(_ask, ahead_path(pool), Claim(spec.id, key)))
    try:
        found = await asyncio.shield(asking)
    except (OSError, EOFError) as error:
        logger.debug("nobody says whether there is an engine of %s: %s", spec.id, error)
        return None
    except BaseException:
        # An engine that comes now is nobody's.
        asking.add_done_callback(_let_go)
        raise
    if found is None:
        return None
    line, process_id, addresses = found
    return await ForkedEngine.adopt(line, spec.id, process_id, addresses)


def answer_claim(client: socket.socket, engine: ForkedEngine | None) -> None:
    """Give the engine to whoever claims it. Raises OSError if that has gone; then nothing was given."""
    told = {} if engine is None else {"process_id": engine.process_id, "addresses": engine.addresses}
    # A byte of its own for the descriptor to come with.
    socket.send_fds(client, [b"!"], [] if engine is None else [engine.line()])
    client.sendall(pack_frame(json.dumps(told).encode()))


def _tell(path: Path, recipe: Recipe) -> None:
    with _connected(path) as node:
        node.sendall(pack_frame(pickle.dumps(recipe)))


def _ask(path: Path, question: Claim) -> tuple[socket.socket, int, tuple[str, str]] | None:
    with _connected(path) as node:
        node.sendall(pack_frame(pickle.dumps(question)))
        # The descriptor comes with the first byte.
        _, descriptors, _, _ = socket.recv_fds(node, 1, 1)
        line = socket.socket(fileno=descriptors[0]) if descriptors else None
        try:
            answer = json.loads(receive_frame(node))
        except BaseException:
            if line is not None:
                line.close()
            raise
    if line is None:
        return None
    inputs, outputs = answer["addresses"]
    return line, answer["process_id"], (inputs, outputs)


def _connected(path: Path) -> socket.socket:
    node = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    node.settimeout(CLAIM_TIMEOUT_S)
    try:
        node.connect(str(path))
    except OSError:
        node.close()
        raise
    return node


def _let_go(asking: asyncio.Future[tuple[socket.socket, int, tuple[str, str]] | None]) -> None:
    if not asking.cancelled() and asking.exception() is None and (found := asking.result()) is not None:
        found[0].close()
