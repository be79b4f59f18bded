"""Periodic load on a model that sleeps in between: with the plan its engine is awake before the burst."""

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.support.ray_head import command
from tests.support.service import Service, demo_args
from tests.support.tenants import KeysFile
from tests.support.waiting import until

pytestmark = pytest.mark.timed

MODEL = "sleeper"
# Long beside a wake, also on a busy machine.
PERIOD_S = 9.0
LOOK_S = 0.3
BURST = 4
BURSTS = 3
# A busy machine has it learn from more of them.
MOST_AHEAD = 12
KEEP_AWAKE_S = 1.0
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def key(keys_file: KeysFile) -> str:
    return keys_file.keys["root"]


@pytest.fixture(scope="module")
def http(guarded: Service, key: str) -> Iterator[httpx.Client]:
    """Asks about a model, added at run time, that sleeps after a second."""
    section = demo_args()["models"][0] | {"keep_awake_s": KEEP_AWAKE_S, "lora": None}
    del section["id"]
    authorized = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=guarded.url, headers=authorized, timeout=120) as asking:
        asking.put(f"/admin/models/{MODEL}", json=section).raise_for_status()
        until(lambda: engine(asking)["state"] in {"awake", "asleep"}, 120)
        yield asking
        asking.delete(f"/admin/models/{MODEL}").raise_for_status()


@pytest.fixture(scope="module")
def client(guarded: Service, key: str) -> OpenAI:
    return OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)


def engine(http: httpx.Client) -> Any:
    return http.get("/admin/models").json()["models"][MODEL]


def planned(http: httpx.Client) -> Any:
    answer = http.get("/admin/plan", params={"model": MODEL})
    assert answer.is_success, answer.text
    return answer.json()["models"].get(MODEL)


def said(http: httpx.Client) -> Any:
    """What the plan says of it, without the series."""
    return {name: each for name, each in (planned(http) or {}).items() if name not in {"forecast", "demand"}}


def burst(client: OpenAI, keep_alive: str | None) -> list[float]:
    """Times to the first token of requests that come at once, in seconds."""
    together = threading.Barrier(BURST)

    def ask() -> float:
        together.wait()
        begin_s = time.monotonic()
        body = None if keep_alive is None else {"keep_alive": keep_alive}
        stream = client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=8, temperature=0, stream=True, extra_body=body
        )
        first_s = 0.0
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content and not first_s:
                first_s = time.monotonic() - begin_s
        return first_s

    with ThreadPoolExecutor(BURST) as threads:
        return sorted(threads.map(lambda _: ask(), range(BURST)))


def test_the_engine_is_awake_before_the_burst(http: httpx.Client, client: OpenAI) -> None:
    burst(client, f"{KEEP_AWAKE_S}s")
    # In the middle of a second, so that the same seconds count each time.
    begin_s = float(int(time.time()) + 3) + 0.5
    by_requests: list[float] = []
    # Of those that are left to the plan: whether the engine had slept and was awake again already, and the median.
    ahead: list[tuple[bool, float]] = []
    wakes = engine(http)["wakes"]
    for number in range(1 + BURSTS + MOST_AHEAD):
        time.sleep(max(0.0, begin_s + number * PERIOD_S - LOOK_S - time.time()))
        before, told = engine(http), said(http)
        time.sleep(max(0.0, begin_s + number * PERIOD_S - time.time()))
        # Who says how long a model stays awake gets just that, so these see what there is without a plan.
        took_s = burst(client, f"{KEEP_AWAKE_S}s" if number < BURSTS else None)
        print(number, before["state"], before["wakes"] - wakes, [round(each, 2) for each in took_s], told)
        if number < BURSTS:
            by_requests.append(statistics.median(took_s))
        # The plan has nothing to say before the first request that leaves it to it.
        elif number > BURSTS:
            ahead.append((before["state"] == "awake" and before["wakes"] > wakes, statistics.median(took_s)))
        wakes = engine(http)["wakes"]
        if is_quicker(ahead, by_requests):
            break
    assert planned(http)["gaps_seen"] >= BURSTS
    assert is_quicker(ahead, by_requests), (ahead, by_requests)
    until(lambda: outcomes(http).get("used", 0) >= BURSTS - 1)


def is_quicker(ahead: list[tuple[bool, float]], by_requests: list[float]) -> bool:
    """Whether the engine was woken before most of the last bursts, and their first tokens came sooner for it."""
    last = ahead[-BURSTS:]
    if len(last) < BURSTS or sum(was_awake for was_awake, _ in last) < BURSTS - 1:
        return False
    return statistics.median(took_s for _, took_s in last) < statistics.median(by_requests)


def test_without_a_forecaster_it_answers_and_the_next_one_knows_what_the_last_one_knew(
    guarded: Service, http: httpx.Client, client: OpenAI
) -> None:
    # Those between the test's bursts. Whether there was one before the first, and how many it finds within one that has
    # the bad luck to span two seconds, depends on how long it takes a request to be, which it learns anew.
    between_bursts = 2 * BURSTS
    assert planned(http)["gaps_seen"] >= between_bursts
    process = guarded.processes("ForecasterActor")[0]
    process.kill()
    assert all(first_s > 0 for first_s in burst(client, None))
    until(lambda: gaps_seen(http) >= between_bursts)
    assert process.pid != guarded.processes("ForecasterActor")[0].pid
    assert guarded.processes("Forecaster"), "and its keeper is there as before"


def gaps_seen(http: httpx.Client) -> int:
    answer = http.get("/admin/plan", params={"model": MODEL})
    if answer.status_code == 503:
        return -1
    return answer.json()["models"].get(MODEL, {}).get("gaps_seen", -1)


@pytest.mark.usefixtures("http")
def test_the_plan_is_shown(guarded: Service, key: str) -> None:
    shown = subprocess.run(
        [command("flashserve"), "forecast", "--url", guarded.url],
        check=True, capture_output=True, text=True, env=guarded.environment | {"FLASHSERVE_API_KEY": key},
    ).stdout  # fmt: skip
    assert MODEL in shown
    assert "replicas needed" in shown


def outcomes(http: httpx.Client) -> dict[str, float]:
    lines = http.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("ray_flashserve_prewarms_total")]
    return {line.split('outcome="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in found}
