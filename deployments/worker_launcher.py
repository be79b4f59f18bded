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
# While nobody has said that there will be a zygote. The first workers of a node come before it: to import beside it
# takes them less time than to wait until it has.
ABSENT_S = 0.0
LOOK_S = 0.05
SOCKET = "workers"
_LENGTH = struct.Struct("!Q")


def door(node_id: str) -> Path:
    """Return where a node's zygote is found: a link to the directory of its sockets."""
    return Path(f"/tmp/fs-{os.getuid()}") / node_id[:24]  # noqa: S108 - its owner is checked


def main() -> None:
    """Have the worker of the command line forked, and end with it; or become it."""
    arguments = sys.argv[1:]
    node_id = next((each.partition("=")[2] for each in arguments if each.startswith("--node-id=")), "")
    line = _connected(door(node_id))
    if line is None or not _handed_over(line, arguments):
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606
    # Until the worker's end, which is the end of the line.
    line.recv(1)


def _connected(found_at: Path) -> socket.socket | None:
    begin_s = time.monotonic()
    while True:
        is_coming = _is_ours(found_at.parent) and found_at.is_symlink()
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if is_coming:
                line.connect(str(found_at / SOCKET))
                return line
        except OSError:
            pass
        line.close()
        if time.monotonic() - begin_s > (COMING_S if is_coming else ABSENT_S):
            return None
        time.sleep(LOOK_S)


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
        socket.send_fds(line, [_LENGTH.pack(len(frame))], [0, 1, 2])
        line.sendall(frame)
        return line.recv(1) == b"f"
    except OSError:
        return False


if __name__ == "__main__":
    main()
