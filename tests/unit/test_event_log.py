import logging
from logging.config import dictConfig
from logging.handlers import MemoryHandler
from pathlib import Path

from deployments.event_log import PACKAGES, event_line, log_with


def test_plain_values_stand_as_they_are() -> None:
    line = event_line("engine.state", model="org/m:a", seconds=1.23456, count=3, nothing=None)
    assert line == "engine.state model=org/m:a seconds=1.235 count=3"


def test_a_clients_words_stay_within_their_field() -> None:
    for words in ("a b", 'x" status=200', "a\nrequest.ended outcome=ok", "a=b", ""):
        line = event_line("e", id=words)
        assert "\n" not in line
        assert line.startswith('e id="')
        assert line.endswith('"')


def test_our_loggers_write_where_serves_do() -> None:
    parents = {package: logging.getLogger(package).parent for package in PACKAGES}
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = kept.append  # type: ignore[method-assign]
    serve = logging.getLogger("ray.serve")
    level = serve.level
    try:
        log_with("ray.serve")
        serve.addHandler(handler)
        serve.setLevel(logging.INFO)
        logging.getLogger("deployments.resident").info("engine.state")
        logging.getLogger("app.visits").debug("not so loud")
    finally:
        serve.removeHandler(handler)
        serve.setLevel(level)
        for package, parent in parents.items():
            logging.getLogger(package).parent = parent
    assert [record.getMessage() for record in kept] == ["engine.state"]


def test_a_replica_is_not_silenced_by_importing_vllm(tmp_path: Path) -> None:
    """What Serve has is a buffer in front of a file, and what vLLM's import does is ``dictConfig``."""
    file = logging.FileHandler(tmp_path / "replica.log")
    buffer = MemoryHandler(1, target=file)
    buffer.addFilter(lambda record: "secret" not in record.getMessage())
    ray = logging.getLogger("ray")
    parents, level = {package: logging.getLogger(package).parent for package in PACKAGES}, ray.level
    handlers = ray.handlers[:]
    try:
        ray.handlers[:] = [buffer]
        ray.setLevel(logging.INFO)
        for _ in range(2):
            log_with("ray")
        assert len(ray.handlers) == 1
        logging.getLogger("app.visits").info("before")
        dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": {"vllm": {"level": "INFO"}}})
        logging.getLogger("app.visits").info("after")
        logging.getLogger("app.visits").info("a secret")
    finally:
        ray.handlers[:] = handlers
        ray.setLevel(level)
        for package, parent in parents.items():
            logging.getLogger(package).parent = parent
    assert (tmp_path / "replica.log").read_text().split() == ["before", "after"]
