"""Where a pinned wheel can be downloaded: asked of pip, with the index, proxy and certificates the user has set.

``pip install --dry-run --report`` would name the URL too, but up to pip 23 it downloads the whole wheel to do so.
``pip index versions -vv`` reads the index page only and logs each link with its digest; that log is parsed here.
Where it cannot be used (no such command, or a URL whose credentials the log masks), ``download_with_pip`` lets pip
download the wheel itself, with its own bar and without resuming.
"""

import os
import re
import subprocess
import sys
from importlib import metadata, resources, util
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.demo.catalog import Wheel
from app.demo.errors import FetchError

_LINK = re.compile(r"^\s*Found link (\S+?),? (?:\(|version:)", re.MULTILINE)
_LOOKUP_TIMEOUT_S = 120.0


def find_wheel_url(wheel: Wheel) -> str | None:
    """The ``https:``, ``http:`` or ``file:`` URL of ``wheel``, without fragment, or None if pip does not tell one.

    Raises:
        FetchError: There is no pip, or it does not answer in two minutes.
    """
    command = ["--no-color", "--retries", "1", "index", "versions", "-vv", wheel.project]
    log = _run_pip(wheel, command, _LOOKUP_TIMEOUT_S).stdout
    links = [url for url in _LINK.findall(log) if _is_wheel(url, wheel)]
    # A link whose digest is announced and right comes before one that announces none.
    links.sort(key=lambda url: wheel.sha256 not in urlsplit(url).fragment)
    return urlsplit(links[0])._replace(fragment="").geturl() if links else None


def download_with_pip(wheel: Wheel, folder: Path, timeout_s: float) -> Path:
    """Let pip download ``wheel`` into ``folder``; the digest is left to the caller.

    Raises:
        FetchError: pip fails, takes longer than ``timeout_s`` seconds, or brings another file.
    """
    command = ["download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += ["--dest", str(folder), wheel.requirement]
    done = _run_pip(wheel, command, timeout_s, show_bar=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or ["no message"]
        raise FetchError(wheel.filename, f"pip says: {lines[-1].removeprefix('ERROR:').strip().rstrip('.')}")
    path = folder / wheel.filename
    if not path.is_file():
        raise FetchError(wheel.filename, f"pip brought another file for {wheel.requirement}")
    return path


def _is_wheel(url: str, wheel: Wheel) -> bool:
    parts = urlsplit(url)
    announced = re.fullmatch(r"sha256=([0-9a-f]{64})", parts.fragment)
    return (
        unquote(parts.path).endswith(f"/{wheel.filename}")
        and "****@" not in parts.netloc  # pip masks credentials in its log
        and (announced is None or announced[1] == wheel.sha256)
    )


def _run_pip(
    wheel: Wheel, arguments: list[str], timeout_s: float, *, show_bar: bool = False
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    try:
        return subprocess.run(  # noqa: S603 - our own interpreter, arguments from the catalogue
            command,
            env=_environment_with_pip(wheel),
            stdout=None if show_bar else subprocess.PIPE,
            stderr=subprocess.PIPE if show_bar else subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(wheel.filename, f"pip did not finish within {timeout_s:.0f} s") from None


def _environment_with_pip(wheel: Wheel) -> dict[str, str]:
    """The environment for pip; one that uv made has no pip, but Python carries a copy to bootstrap it."""
    environment = dict(os.environ)
    # A user's PIP_VERBOSE or PIP_QUIET would be added to our own flag.
    environment = {key: value for key, value in environment.items() if key not in {"PIP_QUIET", "PIP_VERBOSE"}}
    # Not find_spec("pip"): setuptools hooks that lookup and gives up its distutils in this process, which torch needs.
    if list(metadata.distributions(name="pip")):
        return environment
    bundled = resources.files("ensurepip") / "_bundled" if util.find_spec("ensurepip") else None
    copies = [item for item in bundled.iterdir() if item.name.startswith("pip-")] if bundled else []
    if not copies:
        raise FetchError(wheel.filename, "this Python has no pip to ask for its address")
    return environment | {"PYTHONPATH": str(copies[0])}
