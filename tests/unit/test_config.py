from typing import Any

import pytest
import yaml

from app import builder
from app.config import AppConfig, parse_config
from app.errors import ConfigError
from app.model_specs import check_models, store_config
from autoscaler.config import AutoscalingConfig
from tests.support.service import ROOT

MODEL = {"id": "m", "source": "somewhere"}


def args(**changes: Any) -> dict[str, Any]:
    return {"models": [MODEL]} | changes


def test_a_model_is_enough() -> None:
    config = parse_config(args())
    assert config.pool_of("m").name == "default"


def test_the_shipped_file_is_valid() -> None:
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    assert isinstance(parse_config(document["applications"][0]["args"]), AppConfig)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (args(modles=[]), "modles: there is no such key; did you mean 'models'?"),
        ({"models": [{"id": "m", "sorce": "x"}]}, "models[0].sorce: there is no such key; did you mean 'source'?"),
        ({"models": [{"id": "m", "sorce": "x"}]}, "models[0].source: this key is required"),
        ({"models": [MODEL | {"lora": {"max_lora": 1}}]}, "models[0].lora.max_lora: there is no such key; did you"),
        ({"models": [MODEL | {"lora": {"max_loras": 0}}]}, "models[0].lora.max_loras: input should be greater"),
        ({"models": [MODEL | {"lora": {"max_rank": 9}}]}, "models[0].lora.max_rank: input should be 1, 8, 16"),
        ({"models": [MODEL | {"id": "../etc"}]}, "models[0].id: string should match pattern"),
        ({"models": [MODEL | {"openai": {"enable_auto_tool_choice": True}}]}, "models[0].openai: enable_auto_tool"),
        ({"models": []}, "models: list should have at least 1 item"),
        ({"models": [MODEL, MODEL]}, "models[1].id: 'm' is given twice"),
        (args(pools=[{"models": ["n"]}]), "pools[0].models: there is no model 'n'; did you mean 'm'?"),
        (args(pools=[{"models": []}]), "models[0].id: no pool hosts 'm'"),
        (args(pools=[{"models": 7}]), "pools[0].models: "),
        (args(pools=[{"min_replicas": 2}]), "pools[0]: min_replicas (2) is more than max_replicas (1)"),
        (args(pools=[{"name": "a"}, {"name": "a"}]), "pools[1].name: 'a' is given twice"),
        ({"models": [MODEL | {"own_engines": ["acme"]}]}, "models[0].own_engines: there are no tenants without"),
        ({"models": [MODEL | {"own_engines": ["a@b"]}]}, "models[0].own_engines"),
        (args(gateway={"replicas": "many"}), "gateway.replicas: input should be a valid integer"),
        (args(gateway=None), "gateway: "),
        (None, "args: input should be a valid dictionary"),
        ([], "args: input should be a valid dictionary"),
    ],
)
def test_a_wrong_key_or_value_is_named(broken: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(broken)
    assert any(problem.startswith(expected) for problem in caught.value.problems), caught.value.problems


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"models": [{"id": "m"}, {"source": "x", "lroa": None}], "pool": []})
    assert len(caught.value.problems) == 4


def test_the_first_pool_that_hosts_a_model_serves_it() -> None:
    pools = [{"name": "a", "models": ["other"]}, {"name": "b", "models": "*"}, {"name": "c", "models": ["m"]}]
    config = parse_config({"models": [MODEL, MODEL | {"id": "other"}], "pools": pools})
    assert [config.pool_of(model).name for model in ("m", "other")] == ["b", "a"]


def test_a_model_in_more_ranks_than_a_replica_has_gpus_is_refused() -> None:
    split = MODEL | {"engine": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}}
    config = parse_config({"models": [split], "pools": [{"num_gpus": 2}]})
    with pytest.raises(ConfigError, match=r"models\[0\].engine.tensor_parallel_size: its 4 ranks .* has 2 \(num_gpus"):
        check_models(config)


def test_autoscaling_has_defaults_and_can_be_left_out() -> None:
    assert parse_config(args()).autoscaling == AutoscalingConfig()
    assert parse_config(args(autoscaling=None)).autoscaling is None
    assert parse_config(args(autoscaling={"bucket_s": 5})).autoscaling == AutoscalingConfig(bucket_s=5)
    with pytest.raises(ConfigError, match=r"autoscaling.horizon: there is no such key; did you mean 'horizon_s'"):
        parse_config(args(autoscaling={"horizon": 5}))


@pytest.mark.parametrize("is_wanted", [True, False])
def test_only_who_needs_vllm_is_forked_and_nobody_if_told_so(*, is_wanted: bool) -> None:
    config = parse_config(args(fork_replicas=is_wanted))
    storage = store_config(config.storage)
    catalogue = builder._catalogue([], storage, config)
    forked = {"Engines-default": builder._pool(config.pools[0], catalogue, config, storage), "Models": catalogue}
    executables = {
        name: made._bound_deployment.ray_actor_options["runtime_env"].get("py_executable", "")
        for name, made in forked.items()
    }
    assert ("worker_launcher" in executables["Engines-default"]) == is_wanted
    assert not executables["Models"]


def test_what_the_application_keeps_stays_where_gateways_run() -> None:
    config = parse_config(args(gateway={"resources": {"gateway": 1, "fast": 0.0005}}))
    catalogue = builder._catalogue([], store_config(config.storage), config)
    options = catalogue._bound_deployment.ray_actor_options
    assert (options["num_cpus"], options["resources"]) == (0, {"gateway": 0.001, "fast": 0.0005})
