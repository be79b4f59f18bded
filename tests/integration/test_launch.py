"""``flashserve serve``: what a user sees when a configuration is wrong.

A right one is followed from the command to Ctrl-C in ``test_tiers``.
"""

import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.ray_head import command, free_port
from tests.support.service import EMBEDDING_MODEL, clean_environment, demo_args, serve_config

START_TIMEOUT_S = 300.0


class Launched:
    """A ``flashserve serve`` under way, with what it prints."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        self.output = directory / "output.txt"
        # A shell that runs tests in the background has whoever they start ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [command("flashserve"), "serve", "config.yaml"],
                cwd=directory,
                env=clean_environment(RAY_TMPDIR=str(directory), COLUMNS="200"),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until_it_answers(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while "FlashServe answers on" not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline_s, self.output.read_text()
            time.sleep(0.2)

    def everything(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def directory() -> Iterator[Path]:
    # Short, because Ray puts Unix sockets below it.
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp", ignore_cleanup_errors=True) as made:
        yield Path(made)


def embedding_config(port: int) -> dict[str, Any]:
    args = demo_args()
    return serve_config(port, {"models": [m for m in args["models"] if m["id"] == EMBEDDING_MODEL]})


def sentence_of(directory: Path, config: dict[str, Any]) -> str:
    """What the command says when it refuses."""
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [command("flashserve"), "serve", "config.yaml"],
        cwd=directory,
        env=clean_environment(RAY_TMPDIR=str(directory)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


def test_wrong_configurations_are_one_sentence_before_anything_starts(directory: Path) -> None:
    config = embedding_config(free_port())
    arguments = config["applications"][0]["args"]
    [model] = arguments["models"]
    arguments["models"] = [
        model | {"id": "misspelt", "engine": {"max_model_length": 5}},
        model | {"engine": {"runner": "pooling", "max_model_len": 100_000}},
    ]
    said = sentence_of(directory, config)
    assert "models[0].engine.max_model_length: vLLM has no such argument; did you mean 'max_model_len'?" in said
    assert "models[1].engine: User-specified max_model_len (100000) is greater" in said
    arguments["models"][0]["source"] = "nowhere"
    assert "models[0]: source 'nowhere' can't be used: there is no directory" in sentence_of(directory, config)
    assert not (directory / "ray").exists(), "nothing was started"
