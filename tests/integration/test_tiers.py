"""``flashserve serve``, which is ``serve run``, with the shipped file but its model in S3: from the command to Ctrl-C.

It is fetched once, served, found again in host memory after a crash, and shown to whoever asks; nothing is left behind.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
import yaml
from openai import OpenAI
from s3_server import S3Server, serve_s3
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from tests.integration.test_launch import Launched
from tests.support.ray_head import command, free_port
from tests.support.service import EMBEDDING_MODEL, MODELS, ROOT
from tests.support.waiting import until

TEXTS = ["a cat sits", "a kitten is sitting", "stock markets fell"]
WEIGHTS = "models/minilm/model.safetensors"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with serve_s3() as server:
        root = MODELS / EMBEDDING_MODEL
        for path in root.rglob("*"):
            if path.is_file():
                server.objects[f"models/minilm/{path.relative_to(root).as_posix()}"] = path.read_bytes()
        yield server


@pytest.fixture
def launched(s3: S3Server) -> Iterator[tuple[Launched, str, Path]]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp", ignore_cleanup_errors=True) as made:
        directory = Path(made)
        document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        document["http_options"]["port"] = port
        args = document["applications"][0]["args"]
        model = next(model for model in args["models"] if model["id"] == EMBEDDING_MODEL)
        # Exact, to be compared with what Transformers makes of it.
        args["models"] = [model | {"source": "s3://models/minilm", "engine": model["engine"] | {"dtype": "float32"}}]
        args["storage"] = {"disk_dir": "disk", "dram_dir": "dram", "s3": {"endpoint_url": s3.url}}
        running = Launched(directory, document)
        try:
            running.until_it_answers()
            assert f"FlashServe answers on http://127.0.0.1:{port}" in running.output.read_text()
            yield running, f"http://127.0.0.1:{port}", directory
        finally:
            if running.process.poll() is None:
                os.kill(running.process.pid, signal.SIGINT)
                running.process.wait(60)


def embeddings(url: str) -> np.ndarray:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    return np.array([item.embedding for item in client.embeddings.create(model=EMBEDDING_MODEL, input=TEXTS).data])


def tiers(url: str) -> dict[str, Any]:
    (held,) = httpx.get(f"{url}/admin/tiers", timeout=30).json()["nodes"].values()
    return held


def process_called(running: Launched, name: str) -> psutil.Process:
    return next(process for process in running.everything() if name in " ".join(process.cmdline()))


def reference() -> np.ndarray:
    """Return the embeddings by Transformers: the mean over tokens, normalized."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / EMBEDDING_MODEL)
    model = AutoModel.from_pretrained(MODELS / EMBEDDING_MODEL, dtype=torch.float32)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    return normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()


def test_a_model_from_s3(s3: S3Server, launched: tuple[Launched, str, Path]) -> None:
    running, url, directory = launched
    assert httpx.get(f"{url}/health").is_success
    assert "Traceback" not in running.output.read_text()
    started = running.everything()
    assert any("VLLM::EngineCore" in " ".join(process.cmdline()) for process in started)
    expected = reference()
    assert np.allclose(embeddings(url), expected, atol=1e-5)

    # The first start built the snapshot; it reaches both tiers while the engine serves already.
    held = until(lambda: (found := tiers(url))["dram"]["snapshots"] and found, 180)
    (in_dram,), (on_disk,) = held["dram"]["snapshots"], held["disk"]["snapshots"]
    assert in_dram["id"] == on_disk["id"]
    until(lambda: tiers(url)["dram"]["snapshots"][0]["whole"], 180)

    # An engine that starts again reads nothing but host memory.
    read_bytes = s3.read_bytes
    process_called(running, "VLLM::EngineCore").kill()
    engine = until(lambda: (found := _engine(url))["restarts"] == 1 and found["state"] == "awake" and found, 180)
    assert engine["start"]["weights_from"] == "dram"
    assert s3.read_bytes == read_bytes
    assert np.allclose(embeddings(url), expected, atol=1e-5)
    assert tiers(url)["dram"]["snapshots"][0]["leases"], "the engine holds what it has mapped"

    # The store's death is nothing to the engine, and the next one finds everything, with who uses it.
    process_called(running, "ray::NodeActor").kill()
    assert np.allclose(embeddings(url), expected, atol=1e-5)
    held = until(lambda: "error" not in (found := tiers(url)) and found, 180)
    assert held["dram"]["snapshots"][0]["leases"]

    shown = subprocess.run(
        [command("flashserve"), "tiers", "--url", url], check=True, capture_output=True, text=True, env=_wide()
    ).stdout
    assert in_dram["id"][:12] in shown
    shown = subprocess.run(
        [command("flashserve"), "status", "--url", url], check=True, capture_output=True, text=True, env=_wide()
    ).stdout
    assert "awake" in shown
    assert "dram" in shown

    started += running.everything()
    os.kill(running.process.pid, signal.SIGINT)
    assert running.process.wait(60) == 0, running.output.read_text()
    assert [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert not (directory / "dram").exists(), "host memory is given back"


def _engine(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}/admin/models", timeout=30).json()["models"][EMBEDDING_MODEL]


def _wide() -> dict[str, str]:
    return os.environ | {"COLUMNS": "250"}
