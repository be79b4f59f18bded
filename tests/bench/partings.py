"""Counts how often a resumed answer parts from the undisturbed one, in bfloat16 and in float32.

In float32 none may. In bfloat16 logits are so coarse that near-ties are common, and which of two tokens wins depends on
how many others were computed along with it: a resumed prefix is computed in one prefill, so some answers part. That is
no more than happens to an undisturbed answer when the requests beside it change, which is counted too. Either way an
answer in JSON is valid for its schema.

Usage: python tests/bench/partings.py [--rounds 3]
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from report import Report, Result, Target, make_report, print_report, write_report
from results_plot import write_picture

from deployments.forked_engine import PoolAddress
from deployments.types import ModelSpec
from deployments.vllm_engine import VllmEngine
from tests.support.pools import background_pool
from tests.support.resumed_cases import KINDS, SCHEMA, Answer, Asking, breaks
from tests.support.service import CHAT_MODEL, MODELS

NAME = "partings"
MAX_TOKENS = 96
ENGINE: dict[str, Any] = {"max_model_len": 512, "kv_cache_memory_bytes": 256 << 20, "enforce_eager": True}
JSON_KINDS = [kind for kind in KINDS if kind.startswith("JSON")]


def is_valid(asking: Asking, answer: Answer) -> bool:
    """Whether an answer in JSON has what its schema requires, and nothing else, if it wasn't cut off."""
    if answer.finish_reason == "length":
        return True
    try:
        value = json.loads(asking.tokenizer.decode(answer.token_ids, skip_special_tokens=True))
    except json.JSONDecodeError:
        return False
    return set(value) == set(SCHEMA["required"]) and 0 <= value["age"] <= 120 and 2 <= len(value["hobbies"]) <= 3  # type: ignore[call-overload]


async def count(pool: PoolAddress, dtype: str, rounds: int) -> list[Result]:
    spec = ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), ENGINE | {"dtype": dtype}, lora_enabled=True, max_loras=2)
    engine = VllmEngine(spec, pool)
    await engine.start()
    try:
        asking, rng = Asking(engine, MAX_TOKENS), random.Random(1)  # noqa: S311
        alone = {kind: await asking.undisturbed(kind) for kind in KINDS}
        broken: list[float] = []
        together: list[float] = []
        invalid = 0
        for _ in range(rounds):
            for kind, expected in alone.items():
                answer = await asking.broken(kind, breaks(len(expected.token_ids), 1, rng), rng)
                broken.append(float(answer.token_ids != expected.token_ids))
                invalid += kind in JSON_KINDS and not is_valid(asking, answer)
            for kind, answer in zip(KINDS, await asyncio.gather(*map(asking.undisturbed, KINDS)), strict=True):
                together.append(float(answer.token_ids != alone[kind].token_ids))
                invalid += kind in JSON_KINDS and not is_valid(asking, answer)
    finally:
        await engine.stop()
    none = Target(0, "max") if dtype == "float32" else None
    return [
        Result(f"{dtype}: parted after a break", sum(broken), f"of {len(broken)}", tuple(broken), none),
        Result(f"{dtype}: parted without one, among others", sum(together), f"of {len(together)}", tuple(together)),
        Result(f"{dtype}: JSON that is not valid", float(invalid), "answers", (float(invalid),), Target(0, "max")),
    ]


async def measure(pool: PoolAddress, rounds: int) -> Report:
    results = [result for dtype in ("bfloat16", "float32") for result in await count(pool, dtype, rounds)]
    return make_report(
        NAME, results, [f"{len(KINDS)} kinds of requests, {MAX_TOKENS} tokens at most, {rounds} rounds."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs, background_pool(Path(logs)) as pool:
        report = asyncio.run(measure(pool, arguments.rounds))
    print_report(report)
    print(f"Written: {write_report(report)}, {write_picture(report)}")


if __name__ == "__main__":
    main()
