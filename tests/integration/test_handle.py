"""Calls from another Ray job on the same cluster mean the same as HTTP."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, Service

QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


@pytest.fixture(scope="module")
def job(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a job of its own found, started in an empty directory, as a user's would be."""
    script = Path(__file__).with_name("handle_job.py")
    done = subprocess.run(
        [sys.executable, str(script), CHAT_MODEL, EMBEDDING_MODEL],
        env=service.environment | {"RAY_ADDRESS": service.ray_address},
        cwd=tmp_path_factory.mktemp("job"),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[0].removeprefix("FOUND "))


def over_http(service: Service, path: str, body: dict[str, Any]) -> Any:
    return httpx.post(f"{service.url}{path}", json=body, timeout=60).json()


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal but for what names the one request."""
    names = {"id", "created"}
    return {k: v for k, v in one.items() if k not in names} == {k: v for k, v in other.items() if k not in names}


def test_answers_are_those_of_http(job: dict[str, Any], service: Service) -> None:
    body = {"model": CHAT_MODEL, "max_tokens": 8} | QUESTION
    answer = over_http(service, "/v1/chat/completions", body)
    answer["usage"] = job["answer"]["usage"] | {"prompt_tokens_details": answer["usage"]["prompt_tokens_details"]}
    for found in (job["answer"], job["async"]["answer"], job["bare_handle"]):
        found["usage"]["prompt_tokens_details"] = answer["usage"]["prompt_tokens_details"]  # grows with the cache
        assert same(found, answer)
    assert same(
        job["completion"],
        over_http(
            service, "/v1/completions", {"model": CHAT_MODEL, "prompt": "Once", "max_tokens": 3, "temperature": 0}
        )
        | {"usage": job["completion"]["usage"]},
    )


def test_streams_are_the_answer_in_pieces(job: dict[str, Any]) -> None:
    for chunks in (job["chunks"], job["async"]["chunks"]):
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert text == job["answer"]["choices"][0]["message"]["content"]


def test_embeddings_and_tokens(job: dict[str, Any], service: Service) -> None:
    over = over_http(service, "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "a cat"})
    assert job["embedding"]["data"][0]["embedding"] == pytest.approx(over["data"][0]["embedding"], abs=1e-6)
    assert job["tokens"] == over_http(service, "/tokenize", {"model": CHAT_MODEL, "prompt": "Hello"})


def test_models_are_those_of_http(job: dict[str, Any], service: Service) -> None:
    listed = httpx.get(f"{service.url}/v1/models").json()["data"]
    assert [card["id"] for card in job["async"]["models"]] == [card["id"] for card in listed]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("unknown", {"model": "nobody"} | QUESTION),
        ("empty", {"model": CHAT_MODEL, "messages": []}),
        ("negative", {"model": CHAT_MODEL, "stream": True, "max_tokens": -1} | QUESTION),
        ("wrong_type", {"model": CHAT_MODEL, "messages": "hi"}),
    ],
)
def test_errors_are_those_of_http(job: dict[str, Any], service: Service, name: str, body: dict[str, Any]) -> None:
    error = over_http(service, "/v1/chat/completions", body)["error"]
    assert job[name] == [error["code"], error["type"], error["param"], error["message"]]


def test_the_job_needed_nothing_heavy(job: dict[str, Any]) -> None:
    assert job["heavy"] == []
