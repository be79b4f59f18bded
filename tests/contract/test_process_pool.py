"""Engines forked from the process pool: they answer as others do, and nothing of them is left behind. Real vLLM."""

import asyncio
import fcntl
import os
import signal
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio
from vllm.pooling_params import PoolingParams

from deployments.errors import EngineDiedError, EngineStartError, PoolUnavailableError
from deployments.forked_engine import ForkedEngine, log_path
from deployments.process_pool import ProcessPool
from deployments.types import AdapterRef, EmbedRequest, GenerateRequest, ModelSpec
from deployments.vllm_calls import LOOK_PERIOD_S
from deployments.vllm_engine import VllmEngine
from deployments.wire import TokenDelta
from tests.support.pools import engine_processes, has_a_worker, running_pool, until
from tests.support.service import ADAPTERS, CHAT_MODEL, EMBEDDING_MODEL, MODELS, ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENGINE = {"dtype": "float32", "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20, "enforce_eager": True}
CHAT = ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), ENGINE)
EMBEDDING = ModelSpec(
    EMBEDDING_MODEL, str(MODELS / EMBEDDING_MODEL), {"runner": "pooling", "dtype": "float32", "enforce_eager": True}
)
PIRATE: AdapterRef = {"id": "pirate", "path": str(ADAPTERS / "pirate"), "digest": "0" * 64}

# A replica in a process of its own, which says when it has got where the test wants it.
REPLICA = """
import asyncio, sys
from deployments.forked_engine import ForkedEngine, PoolAddress

async def main(socket_path, logs, model_id, path, until):
    pool = PoolAddress(socket_path, logs)
    if until == "asked":
        engine = await ForkedEngine.ask(pool, model_id)
    else:
        from deployments.types import ModelSpec
        from deployments.vllm_engine import VllmEngine

        options = {"dtype": "float32", "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20, "enforce_eager": True}
        engine = VllmEngine(ModelSpec(model_id, path, options), pool)
        await engine.start()
    print("there", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""

OWNER = """
import asyncio, sys
from pathlib import Path
from deployments.process_pool import ProcessPool

async def main(logs):
    pool = ProcessPool(Path(logs))
    pool.run()
    await pool.ready()
    print(pool.process_id(), pool.address.socket_path, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessPool]:
    """Forks engines for all tests; and ends with its owner."""
    async with running_pool(tmp_path_factory.mktemp("logs")) as made:
        yield made
        assert engine_processes(made) == []
        zygote = psutil.Process(made.process_id())
        assert zygote.num_threads() == 1
        assert "ready" in repr(made)
    await until(lambda: not zygote.is_running() or zygote.status() == psutil.STATUS_ZOMBIE)
    assert not Path(made.address.socket_path).parent.exists()


def ask(stream_id: str = "g", max_tokens: int = 12) -> GenerateRequest:
    return {
        "stream_id": stream_id,
        "model_id": CHAT_MODEL,
        "prompt_token_ids": [504, 3575, 282, 4649, 314],
        "sampling": {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True},
        "reply_to": {"host": "", "port": 0, "key": ""},
    }


async def answer(engine: VllmEngine) -> Any:
    if "generate" in engine.supported_tasks():
        return [token async for delta in engine.generate(ask()) for token in delta.token_ids]
    request: EmbedRequest = {
        "stream_id": "e",
        "model_id": EMBEDDING_MODEL,
        "prompt_token_ids": [101, 4937, 102],
        "pooling": msgspec.to_builtins(PoolingParams(task="embed")),
    }
    return await engine.embed(request)


async def rest_of(deltas: AsyncIterator[TokenDelta]) -> list[TokenDelta]:
    return [delta async for delta in deltas]


async def started(spec: ModelSpec, pool: ProcessPool) -> VllmEngine:
    engine = VllmEngine(spec, pool.address)
    await engine.start()
    assert engine.start_stages_s(), "it was started without the pool"
    return engine


def launcher_of(processes: list[psutil.Process]) -> psutil.Process:
    return next(process for process in processes if os.getpgid(process.pid) == process.pid)


def core_of(processes: list[psutil.Process]) -> psutil.Process:
    return child_of(launcher_of(processes), processes)


def worker_of(processes: list[psutil.Process]) -> psutil.Process:
    return child_of(core_of(processes), processes)


def child_of(parent: psutil.Process, processes: list[psutil.Process]) -> psutil.Process:
    return next(process for process in processes if process.ppid() == parent.pid)


async def test_two_are_forked_at_once(pool: ProcessPool) -> None:
    forked = await asyncio.gather(started(CHAT, pool), started(EMBEDDING, pool))
    processes = engine_processes(pool)
    assert len(processes) == 6  # a launcher, a core and a worker each
    titles = [process.cmdline()[0] for process in processes]
    assert titles.count("VLLM::EngineCore") == titles.count("VLLM::Worker") == 2
    assert all(await asyncio.gather(*(answer(engine) for engine in forked)))
    for engine in forked:
        stages_s = engine.start_stages_s()
        assert all(stage_s >= 0 for stage_s in stages_s.values())
        assert {"fork", "start the worker and its device", "make the model and load weights"} <= stages_s.keys()
    for engine in forked:
        await engine.stop()
    assert engine_processes(pool) == []


@pytest.mark.parametrize(("victim", "is_tidied"), [(core_of, False), (worker_of, True), (launcher_of, False)])
async def test_the_death_of_a_process_ends_its_requests_and_its_engine(
    pool: ProcessPool, victim: Any, *, is_tidied: bool
) -> None:
    engine = await started(replace(CHAT, engine=ENGINE | {"max_num_seqs": 1}), pool)
    deltas = engine.generate(ask(max_tokens=480))
    await anext(deltas)
    waiting = asyncio.ensure_future(rest_of(engine.generate(ask("waits"))))
    # Another word of the first comes after the second has been asked for.
    await anext(deltas)
    if is_tidied:
        # As when the pool's owner has gone, which its engines outlive.
        for record in records(pool):
            record.unlink()
    victim(engine_processes(pool)).kill()
    with pytest.raises(EngineDiedError) as suspected:
        await asyncio.wait_for(rest_of(deltas), 20)
    with pytest.raises(EngineDiedError) as waited:
        await asyncio.wait_for(waiting, 20)
    with pytest.raises(EngineDiedError) as came_later:
        await rest_of(engine.generate(ask("late")))
    assert [died.value.had_begun for died in (suspected, waited, came_later)] == [True, False, False]
    with pytest.raises(EngineDiedError):
        engine.check()
    await until(lambda: engine_processes(pool) == [])
    await engine.stop()
    assert records(pool) == []


def records(pool: ProcessPool) -> list[Path]:
    return list(Path(pool.address.socket_path).parent.glob("batch-*"))


@pytest.mark.parametrize("call", [VllmEngine.adapters, lambda engine: engine.preload_adapter(PIRATE)])
async def test_nobody_waits_for_an_answer_of_the_dead(
    pool: ProcessPool, call: Callable[[VllmEngine], Awaitable[Any]]
) -> None:
    engine = await started(replace(CHAT, lora_enabled=True), pool)
    core = core_of(engine_processes(pool))
    core.suspend()
    waiting = asyncio.ensure_future(call(engine))
    # It has been asked, and doesn't answer.
    await asyncio.wait([waiting], timeout=2 * LOOK_PERIOD_S)
    assert not waiting.done()
    core.kill()
    with pytest.raises(EngineDiedError):
        await asyncio.wait_for(waiting, 20)
    await engine.stop()


async def test_an_engine_outlives_the_zygote_and_the_next_one_gets_a_new_zygote(pool: ProcessPool) -> None:
    engine = await started(CHAT, pool)
    expected = await answer(engine)
    old = pool.process_id()
    assert old is not None
    os.kill(old, signal.SIGKILL)
    await until(lambda: pool.process_id() not in {None, old})
    await pool.ready()
    engine.check()
    assert await answer(engine) == expected
    another = await started(replace(CHAT, id="another"), pool)
    assert await answer(another) == expected
    await another.stop()
    await engine.stop()
    assert engine_processes(pool) == []


@pytest.mark.parametrize(("moment", "end"), [("asked", signal.SIGTERM), ("started", signal.SIGKILL)])
async def test_an_engine_ends_with_its_replica(pool: ProcessPool, moment: str, end: signal.Signals) -> None:
    replica = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", REPLICA, pool.address.socket_path, pool.address.log_directory),
        *(CHAT.id, CHAT.path, moment),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
    )
    assert replica.stdout is not None
    try:
        async with asyncio.timeout(120):
            while b"there" not in await replica.stdout.readline():
                assert replica.returncode is None
        assert len(engine_processes(pool)) == (1 if moment == "asked" else 3)
    finally:
        replica.send_signal(end)
        await replica.wait()
    await until(lambda: engine_processes(pool) == [])


async def test_a_client_that_is_cancelled_in_the_middle_of_a_start_leaves_nothing(pool: ProcessPool) -> None:
    engine = VllmEngine(CHAT, pool.address)
    start = asyncio.ensure_future(engine.start())
    await until(lambda: has_a_worker(pool))  # and its model has not
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    await until(lambda: engine_processes(pool) == [])
    await engine.stop()


async def test_a_client_that_ends_before_it_has_read_all_leaves_nothing(
    pool: ProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has not read breaks the connection instead of ending it, as when it is killed."""
    made: list[ForkedEngine] = []
    begin = ForkedEngine.__init__

    def noted(self: ForkedEngine, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)

    monkeypatch.setattr(ForkedEngine, "__init__", noted)
    engine = VllmEngine(CHAT, pool.address)
    start = asyncio.ensure_future(engine.start())
    await until(lambda: has_a_worker(pool))
    line = made[0]._writer.transport
    line.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: unread_bytes(line.get_extra_info("socket").fileno()) > 0)
    line.abort()
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    await until(lambda: engine_processes(pool) == [])
    await engine.stop()


def unread_bytes(descriptor: int) -> int:
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("victim", [core_of, worker_of])
async def test_a_process_killed_in_the_middle_of_a_start_fails_it(pool: ProcessPool, victim: Any) -> None:
    engine = VllmEngine(CHAT, pool.address)
    start = asyncio.ensure_future(engine.start())
    await until(lambda: has_a_worker(pool))
    victim(engine_processes(pool)).kill()
    with pytest.raises(EngineStartError):
        await asyncio.wait_for(start, 60)
    assert engine_processes(pool) == []


def with_half_its_weights(spec: ModelSpec, directory: Path) -> ModelSpec:
    """The model, whose files say what they should until the weights are mapped."""
    for file in Path(spec.path).iterdir():
        Path(directory, file.name).symlink_to(file)
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(whole[: len(whole) // 2])
    return replace(spec, path=str(directory))


async def test_weights_that_cannot_be_read_fail_the_start_and_leave_nothing(pool: ProcessPool, tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="SafetensorError"):
        await VllmEngine(with_half_its_weights(CHAT, tmp_path), pool.address).start()
    assert engine_processes(pool) == []
    with pytest.raises(EngineStartError):
        await VllmEngine(replace(CHAT, path=str(tmp_path / "nowhere")), pool.address).start()


async def test_each_engine_has_the_surroundings_of_its_replica(
    pool: ProcessPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = {"a": 0, "b": 1}
    engines = []
    for name, core in cores.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", str(core))
        engines.append(await started(replace(CHAT, id=name), pool))
    for name, core in cores.items():
        processes = engine_processes(pool, f"-{name}.log")
        assert len(processes) == 3
        assert {process.cwd() for process in processes} == {str(tmp_path / name)}
        assert worker_of(processes).cpu_affinity() == [core]
        assert "Initializing a V1 LLM engine" in log_path(pool.address, name).read_text()
    for engine in engines:
        await engine.stop()


async def test_engines_that_nobody_binds_may_use_every_core(pool: ProcessPool) -> None:
    engine = await started(CHAT, pool)
    assert worker_of(engine_processes(pool)).cpu_affinity() == psutil.Process().cpu_affinity()
    await engine.stop()


async def test_what_a_fork_cannot_change_is_refused(pool: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    with pytest.raises(PoolUnavailableError, match="VLLM_LOGGING_LEVEL"):
        await ForkedEngine.ask(pool.address, CHAT.id)
    await until(lambda: engine_processes(pool) == [])


async def test_a_zygote_ends_with_an_owner_that_was_killed(tmp_path: Path) -> None:
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
    )
    assert owner.stdout is not None
    try:
        process_id, socket_path = (await asyncio.wait_for(owner.stdout.readline(), 120)).decode().split()
        zygote = psutil.Process(int(process_id))
    finally:
        owner.kill()
        await owner.wait()
    await until(lambda: not zygote.is_running())
    assert not Path(socket_path).parent.exists()
