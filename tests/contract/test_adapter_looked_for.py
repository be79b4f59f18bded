"""A stream for an adapter that takes its time to be found: what its client is told, and that it is answered."""

import threading
from pathlib import Path

import pytest

from storage.adapter_files import AdapterFiles
from tests.support.gateways import gateway_of, model
from tests.support.service import ADAPTERS

HERE = next(path.name for path in sorted(ADAPTERS.iterdir()))


async def test_a_stream_says_that_its_adapter_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_be_found, is_there = threading.Event(), AdapterFiles.is_there

    def slowly(files: AdapterFiles, source: str) -> bool:
        may_be_found.wait(60)
        return is_there(files, source)

    monkeypatch.setattr(AdapterFiles, "is_there", slowly)
    body = {"model": HERE, "prompt": "x", "max_tokens": 2, "stream": True}
    async with (
        gateway_of(tmp_path, model("m", lora=True), keys_file=None, lora_source=str(ADAPTERS)) as service,
        service.client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert await anext(lines) == f": an adapter called {HERE} is looked for"
        may_be_found.set()
        rest = [line async for line in lines if line and not line.startswith(":")]
    assert '"text"' in rest[0]
    assert rest[-1] == "data: [DONE]"
