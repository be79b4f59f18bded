"""Requests of every kind that can be resumed, and how to break one: for tests and for counting."""

import json
import random
import uuid
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoTokenizer

from app.streams import TokenStreams
from deployments.engine import Engine
from deployments.types import AdapterRef, GenerateRequest
from deployments.wire import LogprobRow
from tests.support.service import ADAPTERS, CHAT_MODEL, MODELS

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}
# What vLLM makes of tools that the model has to call (`hermes`).
TOOL_CALL = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": "<tool_call>\n",
        "content": {"type": "json_schema", "json_schema": SCHEMA},
        "end": "\n</tool_call>",
    },
}
_SEEDED = {"temperature": 1.0, "seed": 7}
# Long enough to be whole.
_JSON = {"max_tokens": 96, "structured_outputs": {"json": json.dumps(SCHEMA)}}
STORY = "Tell me a story about a fox and a crow."
CAPITAL = "What is the capital of France?"
PERSON = "Describe a person with a name, an age and some hobbies, as JSON."

# By name: what is asked, and the sampling parameters; `max_tokens` unless it is among them is the asker's.
KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "greedy": (STORY, {}),
    "presence penalty": (STORY, {"presence_penalty": 1.5}),
    "frequency penalty": (STORY, {"frequency_penalty": 1.2}),
    "repetition penalty": (STORY, {"repetition_penalty": 1.3}),
    "min_tokens": (CAPITAL, {"min_tokens": 30}),
    "the model's own end": (CAPITAL, {}),
    "stop token": (STORY, {"stop_token_ids": [30], "min_tokens": 20}),
    "logit bias": (STORY, {"logit_bias": {253: -100.0, 281: 2.0}}),
    "seed": (STORY, _SEEDED),
    "seed, top-k": (STORY, _SEEDED | {"top_k": 20}),
    "seed, top-p": (STORY, _SEEDED | {"top_p": 0.8}),
    "seed, min-p": (STORY, _SEEDED | {"min_p": 0.05}),
    "seed, everything": (
        STORY, _SEEDED | {"top_k": 50, "top_p": 0.9, "presence_penalty": 0.5, "repetition_penalty": 1.1}
    ),
    "JSON schema": (PERSON, _JSON),
    "JSON schema, seed": (PERSON, _JSON | _SEEDED),
    "regular expression": (PERSON, {"structured_outputs": {"regex": r"[A-Z][a-z]{3,9}( [a-z]{2,8}){6,20}\."}}),
    "tool call": (PERSON, {"structured_outputs": {"structural_tag": json.dumps(TOOL_CALL)}} | _SEEDED),
    "log probabilities": (STORY, {"logprobs": 3}),
    "adapter": (STORY, {}),
    "adapter, seed": (STORY, _SEEDED),
}  # fmt: skip


@dataclass
class Answer:
    """What came out of an engine, over however many attempts."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobRow] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Asking:
    """Makes requests of the kinds for a model that `engine` serves."""

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(MODELS / CHAT_MODEL)

    def request(self, kind: str, delivered: list[int], salt: str | None) -> GenerateRequest:
        question, sampling = KINDS[kind]
        name = "pirate" if kind.startswith("adapter") else None
        adapter: AdapterRef | None = {"id": name, "path": str(ADAPTERS / name), "digest": name} if name else None
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        return {
            "stream_id": uuid.uuid4().hex,
            "model_id": CHAT_MODEL,
            "prompt_token_ids": list(prompt),
            "sampling": {"temperature": 0.0, "max_tokens": self._max_tokens} | sampling,
            "reply_to": TokenStreams().reply_to,
            "adapter": adapter,
            "delivered_token_ids": list(delivered),
            "cache_salt": salt,
        }

    async def undisturbed(self, kind: str) -> Answer:
        answer = Answer()
        await self._attempt(kind, answer, None, None)
        return answer

    async def broken(self, kind: str, breaks: list[int], salts: random.Random) -> Answer:
        """The answer, when the engine is lost after so many tokens, again and again.

        Every other attempt finds nothing in the prefix cache, as on another engine.
        """
        answer = Answer()
        for at in [*breaks, None]:
            salt = salts.choice([None, uuid.uuid4().hex])
            await self._attempt(kind, answer, at, salt)
        return answer

    async def _attempt(self, kind: str, answer: Answer, until: int | None, salt: str | None) -> None:
        deltas = self._engine.generate(self.request(kind, answer.token_ids, salt))
        async with aclosing(deltas):  # type: ignore[type-var]
            async for delta in deltas:
                count = len(delta.token_ids) if until is None else until - len(answer.token_ids)
                answer.token_ids += delta.token_ids[:count]
                answer.logprobs += (delta.logprobs or [])[:count]
                if until is not None and len(answer.token_ids) >= until:
                    return
                answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason


def breaks(token_count: int, count: int, places: random.Random) -> list[int]:
    """Places to break an answer of so many tokens, in order; two may be the same, and one may be before the first."""
    return sorted(places.randrange(token_count) for _ in range(count))
