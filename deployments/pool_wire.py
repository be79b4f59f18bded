"""What a client of the process pool and the process forked for it say to each other, over a Unix socket.

The client sends two frames: its surroundings, which the forked process takes on before anything reads them, and a
pickled ``EngineRequest``. The process answers with lines of JSON. From then on the connection is the engine's life
line: it ends when either side does. Only the owner of the socket's directory can connect, so what is unpickled is one's
own.
"""

import json
import socket
import struct
from dataclasses import asdict, dataclass, field

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True)
class Surroundings:
    """What an engine's process takes over from the one that asked for it.

    ``log_path`` gets its output, and the directory ``cache_dir``, if there is one, what it compiles and measures.
    """

    environment: dict[str, str]
    working_directory: str
    log_path: str
    cache_dir: str = ""


@dataclass(frozen=True)
class EngineRequest:
    """``engine`` is vLLM's configuration with the class of its executor, pickled, for who has no vLLM passes it on.

    Its weights come from where that says, or from ``snapshot`` if there is one.
    """

    engine: bytes
    snapshot: str = ""


@dataclass(frozen=True)
class Report:
    """What a forked process says: that it is there, where its engine will be reached, that it serves or why it doesn't.

    ``addresses`` are those of vLLM's front end, for requests and for outputs. ``marks_s`` are the moments of the start
    on the monotonic clock, which the node's processes share.
    """

    state: str  # forked or refused, then launching, then ready; or failed
    reason: str = ""
    process_id: int = 0
    addresses: list[str] = field(default_factory=list)
    marks_s: dict[str, float] = field(default_factory=dict)


def pack_frame(payload: bytes) -> bytes:
    """Return ``payload`` with its length in front."""
    return _LENGTH.pack(len(payload)) + payload


def pack_surroundings(surroundings: Surroundings) -> bytes:
    """Return the first frame of a request."""
    return pack_frame(json.dumps(asdict(surroundings)).encode())


def receive_surroundings(line: socket.socket) -> Surroundings:
    """Read the first frame of a request. Raises ``EOFError`` when the client has gone."""
    return Surroundings(**json.loads(receive_frame(line)))


def receive_frame(line: socket.socket) -> bytes:
    """Read one frame. Raises ``EOFError`` when the client has gone."""
    (length,) = _LENGTH.unpack(_receive(line, _LENGTH.size))
    return bytes(_receive(line, length))


def _receive(line: socket.socket, byte_count: int) -> bytearray:
    data = bytearray(byte_count)
    view = memoryview(data)
    while view:
        received = line.recv_into(view)
        if not received:
            raise EOFError
        view = view[received:]
    return data


def pack_report(report: Report) -> bytes:
    """Return the line of ``report``."""
    return json.dumps(asdict(report)).encode() + b"\n"


def parse_report(line: bytes) -> Report:
    """Return the report of a line."""
    return Report(**json.loads(line))
