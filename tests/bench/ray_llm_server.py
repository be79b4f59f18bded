"""Serves one model with Ray Serve LLM in a Ray instance of its own, until SIGINT or SIGTERM.

Usage: python ray_llm_server.py CONFIG.json, with the keys of `RayLlmConfig`.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import ray
from ray import serve
from ray.serve.llm import build_openai_app


class RayLlmConfig(TypedDict):
    """Where to serve what; `engine_args` are vLLM's, by their Python names."""

    host: str
    port: int
    dashboard_port: int
    temp_dir: str
    logical_cpus: int
    model_id: str
    model_dir: str
    engine_args: dict[str, Any]
    max_ongoing_requests: int
    initial_replicas: int
    lora_config: NotRequired[dict[str, Any]]


def llm_config(config: RayLlmConfig) -> dict[str, Any]:
    """What a user of Ray Serve LLM would write for one replica on a CPU."""
    adapters = {"lora_config": config["lora_config"]} if "lora_config" in config else {}
    return adapters | {
        "model_loading_config": {"model_id": config["model_id"], "model_source": config["model_dir"]},
        "engine_kwargs": config["engine_args"],
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": config["initial_replicas"],
                "initial_replicas": config["initial_replicas"],
                "max_replicas": 1,
            },
            "max_ongoing_requests": config["max_ongoing_requests"],
        },
        "accelerator_config": {"kind": "cpu"},
    }


def main() -> None:
    """Serves until a signal comes."""
    config: RayLlmConfig = json.loads(Path(sys.argv[1]).read_text())
    stop_signals = {signal.SIGINT, signal.SIGTERM}
    ray.init(
        address="local",
        num_cpus=config["logical_cpus"],
        dashboard_port=config["dashboard_port"],
        _temp_dir=config["temp_dir"],
    )
    # Blocked only now: a mask set earlier would be inherited by all of Ray.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    serve.start(http_options={"host": config["host"], "port": config["port"]})
    serve.run(build_openai_app({"llm_configs": [llm_config(config)]}), route_prefix="/")
    signal.sigwait(stop_signals)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
