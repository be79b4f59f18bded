"""A Ray job of its own that calls FlashServe: must not import vLLM or the service's classes. Prints its findings."""

import asyncio
import json
import sys

from app.client import connect, connect_async
from app.errors import ApiError

MODEL, EMBEDDING_MODEL = sys.argv[1:3]
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


def error_of(call):  # noqa: ANN001, ANN201 - a script
    try:
        call()
    except ApiError as error:
        return [error.code, error.type, error.param, error.message]
    return None


async def in_a_loop() -> dict[str, object]:
    client = connect_async()
    stream = await client.chat(model=MODEL, max_tokens=8, stream=True, **QUESTION)
    return {
        "answer": await client.chat(model=MODEL, max_tokens=8, **QUESTION),
        "chunks": [chunk async for chunk in stream],
        "models": await client.models(),
    }


fs = connect()
found = {
    "answer": fs.chat(model=MODEL, max_tokens=8, **QUESTION),
    "chunks": list(fs.chat(model=MODEL, max_tokens=8, stream=True, **QUESTION)),
    "completion": fs.completions(model=MODEL, prompt="Once", max_tokens=3, temperature=0),
    "embedding": fs.embeddings(model=EMBEDDING_MODEL, input="a cat"),
    "tokens": fs.tokenize(model=MODEL, prompt="Hello"),
    "unknown": error_of(lambda: fs.chat(model="nobody", **QUESTION)),
    "empty": error_of(lambda: fs.chat(model=MODEL, messages=[])),
    "negative": error_of(lambda: list(fs.chat(model=MODEL, stream=True, max_tokens=-1, **QUESTION))),
    "wrong_type": error_of(lambda: fs.chat(model=MODEL, messages="hi")),
    "async": asyncio.run(in_a_loop()),
    "bare_handle": fs._gateway.call.remote("chat", {"model": MODEL, "max_tokens": 8} | QUESTION).result(),
    "heavy": sorted({"vllm", "torch", "transformers"} & set(sys.modules)),
}
print("FOUND " + json.dumps(found))
