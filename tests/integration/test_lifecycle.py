"""Clients that go away, engines that die, what Serve says about it."""

import asyncio
import subprocess
from typing import Any

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.support.ray_head import command
from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, Service
from tests.support.waiting import until

QUESTION = [{"role": "user", "content": "Tell me a very long story about a fox."}]
LONG = {"model": CHAT_MODEL, "messages": QUESTION, "max_tokens": 900, "ignore_eos": True, "temperature": 0}


def running(service: Service) -> int:
    """Sequences that the chat model's engine has in hand."""
    return int(httpx.get(f"{service.url}/admin/models").json()["models"][CHAT_MODEL]["requests"])


@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_a_stream_stops_its_generation(service: Service, n: int) -> None:
    body = LONG | {"stream": True, "n": n, "temperature": 1}
    with httpx.stream("POST", f"{service.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()  # kept: httpx closes the response with its iterator
        next(lines)
        assert running(service) == n
    until(lambda: running(service) == 0, within_s=1.0)


def test_a_client_that_leaves_before_its_answer_stops_its_generation(service: Service) -> None:
    async def ask_and_leave() -> None:
        async with httpx.AsyncClient() as client:
            call = asyncio.ensure_future(client.post(f"{service.url}/v1/chat/completions", json=LONG, timeout=60))
            await asyncio.to_thread(until, lambda: running(service) == 1, 20)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    asyncio.run(ask_and_leave())
    until(lambda: running(service) == 0, within_s=1.0)


def test_a_stop_string_ends_the_generation_too(service: Service, client: OpenAI) -> None:
    answer = client.chat.completions.create(**_without_extra(LONG), stop=[" "])
    assert answer.choices[0].finish_reason == "stop"
    until(lambda: running(service) == 0, within_s=1.0)


def test_an_engine_that_dies_is_repaired_and_the_others_go_on(service: Service, client: OpenAI) -> None:
    replica_pids = {process.pid for process in service.processes("Engines-default")}
    restarts = _engine(service)["restarts"]
    with client.chat.completions.create(stream=True, extra_body={"ignore_eos": True}, **_without_extra(LONG)) as stream:
        next(iter(stream))
        _core_of_the_chat_model(service).kill()
        until(lambda: _engine(service)["restarts"] > restarts, within_s=30)
        embedded = client.embeddings.create(model=EMBEDDING_MODEL, input="still here")
        assert embedded.data, "the other model's engine is not touched"
    until(lambda: _engine(service)["state"] == "awake", within_s=180)
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert {process.pid for process in service.processes("Engines-default")} == replica_pids
    until(lambda: running(service) == 0, within_s=5)


def test_serve_status_says_running(service: Service) -> None:
    done = subprocess.run(
        [command("serve"), "status", "--address", service.dashboard],
        env=service.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "status: RUNNING" in done.stdout
    assert "Engines-default" in done.stdout
    assert "Gateway" in done.stdout


def test_every_model_has_metrics_of_its_own(service: Service, client: OpenAI) -> None:
    client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=3)
    client.embeddings.create(model=EMBEDDING_MODEL, input="count me")

    def counted() -> bool:
        lines = httpx.get(f"{service.url}/metrics", timeout=30).text.splitlines()
        prompts = [line for line in lines if line.startswith("ray_vllm_prompt_tokens_total{")]
        return all(any(f'model_name="{model}"' in line for line in prompts) for model in (CHAT_MODEL, EMBEDDING_MODEL))

    until(counted, within_s=60)


def _engine(service: Service) -> dict[str, Any]:
    return httpx.get(f"{service.url}/admin/models", timeout=30).json()["models"][CHAT_MODEL]


def _without_extra(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "ignore_eos"}


def _core_of_the_chat_model(service: Service) -> psutil.Process:
    """The chat model is the larger one; an engine core is its worker's parent."""
    return max(service.processes("VLLM::Worker"), key=lambda process: process.memory_info().rss).parent()
