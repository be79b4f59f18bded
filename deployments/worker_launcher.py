"""What Ray starts a worker with (``runtime_env``'s ``py_executable``): has one forked that has imported vLLM already.

The zygote of the node's process pool forks it, and this process stays what Ray has started: it ends with the worker,
and the worker with it. Without a zygote, or with one that doesn't come in time, it becomes the worker itself, as Ray
would have it. The standard library is all it has, so that it takes no time.
"""

import json
import os
import socket
import struct
import sys
import time
from pathlib import Path

# Under Ray's patience with a worker that doesn't register, which is a minute.
COMING_S = 50.0
LOOK_S = 0.05
SOCKET = "workers"
# As ``pool_wire`` has it.
_LENGTH = struct.Struct("!Q")


def pool_link(node_id: str) -> Path:
    """Return where a node's pool is found: a link to the directory of its sockets."""
    return Path(f"/tmp/fs-{os.getuid()}") / node_id[:24]  # noqa: S108 - its owner is checked


def main() -> None:
    """Have the worker of the command line forked, and end with it; or become it."""
    arguments = sys.argv[1:]
    node_id = next((each.partition("=")[2] for each in arguments if each.startswith("--node-id=")), "")
    line = _connected(pool_link(node_id))
    if line is None or not _handed_over(line, arguments):
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606
    # Until the worker's end, which is the end of the line.
    line.recv(1)


def _connected(link: Path) -> socket.socket | None:
    """Return a connection to the zygote, once it listens; None if there will be none in time.

    The first workers of a node come before there is a pool: to import beside it takes less time than to wait for it.
    """
    end_s = time.monotonic() + COMING_S
    while _is_ours(link.parent) and link.is_dir() and time.monotonic() < end_s:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.connect(str(link / SOCKET))
        except OSError:
            line.close()
            time.sleep(LOOK_S)
        else:
            return line
    return None


def _is_ours(directory: Path) -> bool:
    try:
        return directory.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _handed_over(line: socket.socket, arguments: list[str]) -> bool:
    """Give the worker's surroundings away; return whether somebody has taken them."""
    asked = {"arguments": arguments, "environment": dict(os.environ), "directory": str(Path.cwd())}
    frame = json.dumps(asked).encode()
    try:
        # The descriptors come with a byte of their own.
        socket.send_fds(line, [b"!"], [0, 1, 2])
        line.sendall(_LENGTH.pack(len(frame)) + frame)
        return line.recv(1) == b"f"
    except OSError:
        return False


if __name__ == "__main__":
    main()
