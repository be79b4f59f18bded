"""The part of vLLM's ``EngineClient`` that has no meaning where no engine runs in the process."""

from typing import Any

from vllm.engine.protocol import EngineClient


class EnginelessClient(EngineClient):
    """Constant answers, and refusals for what only a replica can do with its engine."""

    @property
    def is_running(self) -> bool:
        """Always: a replica that is gone is the router's business, not the client's."""
        return True

    @property
    def is_stopped(self) -> bool:
        """Never, see ``is_running``."""
        return False

    @property
    def errored(self) -> bool:
        """Never, see ``is_running``."""
        return False

    @property
    def dead_error(self) -> BaseException:
        """What vLLM would raise when ``errored``."""
        return RuntimeError("there is no engine in this process")

    async def is_tracing_enabled(self) -> bool:
        """Return False: spans are not forwarded."""
        return False

    async def do_log_stats(self) -> None:
        """Do nothing: replicas log their engines' statistics."""

    async def check_health(self) -> None:
        """Do nothing: Serve checks replicas."""

    async def is_sleeping(self) -> bool:
        """Return False."""
        return False

    async def is_paused(self) -> bool:
        """Return False."""
        return False

    async def _not_here(self, *_: Any, **__: Any) -> Any:
        message = "This is done on an engine replica, not through a gateway."
        raise NotImplementedError(message)

    notify_kv_transfer_request_rejected = _not_here
    start_profile = _not_here
    stop_profile = _not_here
    reset_mm_cache = _not_here
    reset_encoder_cache = _not_here
    reset_prefix_cache = _not_here
    sleep = _not_here
    wake_up = _not_here
    pause_generation = _not_here
    resume_generation = _not_here
