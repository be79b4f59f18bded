"""``flashserve serve`` and ``serve run``: what a user sees when a configuration is wrong, and the shipped one.

From the command to Ctrl-C it is followed in ``test_tiers``.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.support.service import (
    EMBEDDING_MODEL,
    ROOT,
    clean_environment,
    command,
    demo_args,
    free_port,
    serve_config,
)

START_TIMEOUT_S = 300.0


class Launched:
    """A ``flashserve serve`` under way, with what it prints."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        self.output = directory / "output.txt"
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
    arguments["models"][0]["engine"]["max_model_length"] = 5
    assert sentence_of(directory, config).endswith(
        "models[0].engine.max_model_length: vLLM has no such argument; did you mean 'max_model_len'?"
    )
    arguments["models"][0]["engine"] = {"runner": "pooling", "max_model_len": 100_000}
    assert "models[0].engine: User-specified max_model_len (100000) is greater" in sentence_of(directory, config)
    arguments["models"][0]["source"] = "nowhere"
    assert "models[0]: source 'nowhere' can't be used: there is no directory" in sentence_of(directory, config)
    assert not (directory / "ray").exists(), "nothing was started"


def test_serve_run_takes_the_shipped_file(directory: Path) -> None:
    """As in Ray's documents, from the project's directory."""
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    document["http_options"]["port"] = port = free_port()
    document["applications"][0]["args"]["models"] = document["applications"][0]["args"]["models"][1:]
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    with (directory / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [command("serve"), "run", "--address", "local", str(config)],
            cwd=ROOT,
            env=clean_environment(RAY_TMPDIR=str(directory)),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        body = {"model": EMBEDDING_MODEL, "input": "a cat"}
        answer = _first_answer(f"http://127.0.0.1:{port}/v1/embeddings", body, process)
        assert len(answer["data"][0]["embedding"]) == 384
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        _, left = psutil.wait_procs(started, timeout=10)
        for orphan in left:
            orphan.kill()
    assert left == []


def _first_answer(url: str, body: dict[str, Any], process: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None
        try:
            response = httpx.post(url, json=body, timeout=START_TIMEOUT_S)
        except httpx.TransportError:
            response = None
        if response is not None and response.is_success:
            return response.json()
        time.sleep(0.5)
    raise TimeoutError(url)
