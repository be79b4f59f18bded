"""Requests over HTTP whose whole outcome can be compared with another's, token for token."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.resumed_cases import PERSON, SCHEMA, STORY
from tests.support.service import CHAT_MODEL

_TOOLS = [{"type": "function", "function": {"name": "describe_person", "parameters": SCHEMA}}]
_SEEDED = {"temperature": 1.0, "top_p": 0.9, "top_k": 40}


def _chat(question: str, **extra: Any) -> dict[str, Any]:
    return {"model": CHAT_MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0} | extra


# By name: the path and the body, without what a seed or a length adds.
CONVERSATIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("chat/completions", _chat(STORY, stream=True, ignore_eos=True)),
    "n, seed, log probabilities": (
        "chat/completions",
        _chat(STORY, stream=True, n=2, logprobs=True, top_logprobs=2, ignore_eos=True) | _SEEDED,
    ),
    "penalties": ("chat/completions", _chat(STORY, stream=True, presence_penalty=1.0, frequency_penalty=0.5)),
    "JSON schema": (
        "chat/completions",
        _chat(PERSON, response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}),
    ),
    "tool call": ("chat/completions", _chat(PERSON, stream=True, tools=_TOOLS, tool_choice="required") | _SEEDED),
    "adapter": ("chat/completions", _chat(STORY, stream=True, ignore_eos=True) | {"model": "pirate"}),
    "stop string": (
        "completions",
        {"model": CHAT_MODEL, "prompt": "Once upon a time", "stream": True, "stop": [" never was"], **_SEEDED},
    ),
    "completion": ("completions", {"model": CHAT_MODEL, "prompt": "1, 2, 3, 4,", "ignore_eos": True, "temperature": 0}),
}


@dataclass
class Outcome:
    """All that a client got: by choice what was written, and why it ended."""

    written: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, list[str]] = field(default_factory=dict)
    finish_reasons: dict[int, Any] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    error: Any = None

    def add(self, answer: dict[str, Any]) -> None:
        self.error = answer.get("error")
        usage = answer.get("usage")
        if usage:
            # How much came out of the prefix cache is no part of the outcome.
            self.usage = {key: value for key, value in usage.items() if isinstance(value, int)}
        for choice in answer.get("choices", ()):
            index = choice["index"]
            message = choice.get("delta") or choice.get("message") or {}
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            parts = [choice.get("text"), message.get("content")]
            parts += [call.get(part) for call in calls for part in ("name", "arguments")]
            self.written[index] = self.written.get(index, "") + "".join(part for part in parts if part)
            logprobs = (choice.get("logprobs") or {}).get("content") or ()
            self.tokens.setdefault(index, []).extend(entry["token"] for entry in logprobs)
            if choice.get("finish_reason"):
                self.finish_reasons[index] = (choice["finish_reason"], choice.get("stop_reason"))


async def converse(
    client: httpx.AsyncClient,
    kind: str,
    *,
    max_tokens: int,
    seed: int = 1,
    on_chunk: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Outcome:
    """Ask and read to the end; `on_chunk` is called for every piece of a stream."""
    path, body = CONVERSATIONS[kind]
    body = {**body, "max_tokens": max_tokens, "seed": seed}
    outcome = Outcome()
    if not body.get("stream"):
        outcome.add((await client.post(f"/v1/{path}", json=body)).json())
        return outcome
    body["stream_options"] = {"include_usage": True}
    async with client.stream("POST", f"/v1/{path}", json=body) as response:
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if data.startswith("{"):
                chunk = json.loads(data)
                outcome.add(chunk)
                on_chunk(chunk)
    return outcome


class Chunks:
    """Counts the chunks of streams that run together, for whoever waits until all have begun."""

    def __init__(self, streams: int) -> None:
        self._counts = [0] * streams
        self._changed = asyncio.Event()

    def counter(self, index: int) -> Callable[[dict[str, Any]], None]:
        def count(_: dict[str, Any]) -> None:
            self._counts[index] += 1
            self._changed.set()

        return count

    async def at_least(self, count: int) -> None:
        while min(self._counts) < count:
            self._changed.clear()
            await self._changed.wait()
