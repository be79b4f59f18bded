"""The files that start clusters: valid for whom they are meant, and in agreement with the application.

The launcher's file goes through what `ray up` checks before it asks a cloud anything. KubeRay's schema isn't among the
packages here: its fields are written down below as KubeRay 1.5's own types name them (``rayservice_types.go`` and
``raycluster_types.go``), pods only as far as the file uses them. No cloud and no Kubernetes has seen either file.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from pydantic import BaseModel, ConfigDict, Field
from ray.autoscaler._private.providers import _get_default_config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from app.config import AppConfig, parse_config
from app.launch import RAY_SETTINGS

ROOT = Path(__file__).parents[2]
LAUNCHER, KUBERAY, SERVE = (ROOT / f"{name}.yaml" for name in ("ray_cluster", "kuberay_service", "serve_cluster"))
UNITS = {"gb": 10**9, "Gi": 2**30}


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


@pytest.fixture
def launcher() -> dict[str, Any]:
    return read(LAUNCHER)


@pytest.fixture
def service() -> dict[str, Any]:
    return read(KUBERAY)


@pytest.fixture
def config() -> AppConfig:
    return parse_config(read(SERVE)["applications"][0]["args"])


def size_bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(gb|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def option(options: list[str], name: str) -> str:
    (value,) = [each.removeprefix(f"--{name}=") for each in options if each.startswith(f"--{name}=")]
    return value


def settings(options: list[str]) -> dict[str, str]:
    return dict(each.removeprefix("--env=").split("=", 1) for each in options if each.startswith("--env="))


def test_the_launcher_takes_its_file(launcher: dict[str, Any]) -> None:
    prepared = prepare_config(launcher)
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_a_key_that_the_launcher_does_not_know_would_be_noticed(launcher: dict[str, Any]) -> None:
    launcher["available_node_types"]["gpu"]["instance_type"] = "g6e.4xlarge"
    with pytest.raises(Exception, match="instance_type"):
        validate_config(prepare_config(launcher))


def test_nothing_that_is_set_is_left_to_the_launchers_defaults(launcher: dict[str, Any]) -> None:
    """They install Ray's nightly build, among others."""
    defaults = _get_default_config({"type": "aws"})
    assert defaults.keys() - launcher.keys() <= {"cluster_synced_files", "file_mounts_sync_continuously"}


def test_nodes_are_what_they_are_for(launcher: dict[str, Any], config: AppConfig) -> None:
    types = launcher["available_node_types"]
    assert types["head"]["resources"]["GPU"] == 0
    assert config.gateway.resources.keys() <= types["head"]["resources"].keys()
    assert "--num-gpus=0" in launcher["head_start_ray_commands"][-1]
    workers = {name: each for name, each in types.items() if name != "head"}
    for each in workers.values():
        assert each["resources"]["GPU"] >= config.pools[0].num_gpus
        assert each["min_workers"] == 0 < each["max_workers"] <= launcher["max_workers"]
        assert not config.gateway.resources.keys() & each["resources"].keys()
    spot = [name for name, each in workers.items() if each["node_config"].get("InstanceMarketOptions")]
    assert spot == ["gpu-spot"]
    assert all("IamInstanceProfile" in each["node_config"] for each in types.values())


def test_containers_have_memory_that_is_shared_and_may_be_locked(launcher: dict[str, Any], config: AppConfig) -> None:
    docker = launcher["docker"]
    assert option(docker["worker_run_options"], "shm-size")
    assert "--ulimit=memlock=-1:-1" in docker["run_options"]
    store_bytes = int(option(launcher["worker_start_ray_commands"][-1].split(), "object-store-memory"))
    held_bytes = config.storage.dram_bytes + config.storage.adapter_dram_bytes + store_bytes
    assert held_bytes <= size_bytes(option(docker["worker_run_options"], "shm-size"))
    store_bytes = int(option(launcher["head_start_ray_commands"][-1].split(), "object-store-memory"))
    assert store_bytes < size_bytes(option(docker["head_run_options"], "shm-size"))


def test_every_node_has_the_settings_of_a_local_service(launcher: dict[str, Any]) -> None:
    given = settings(launcher["docker"]["run_options"])
    assert RAY_SETTINGS.items() <= given.items()
    assert given["RAY_AUTH_MODE"] == "token"
    assert "~/.ray/auth_token" in launcher["file_mounts"]
    images = (launcher["docker"]["head_image"], launcher["docker"]["worker_image"])
    assert all(f":{ray.__version__}-py311-" in image for image in images)


def test_the_project_is_installed_from_its_locks(launcher: dict[str, Any]) -> None:
    for kind, lock, extra in (("head", "requirements.lock", "cpu"), ("worker", "requirements-gpu.lock", "gpu")):
        commands = launcher[f"{kind}_setup_commands"]
        assert any(f"-r {lock}" in command and f".[{extra}]" in command for command in commands)
        assert (ROOT / lock).is_file()
        assert "~/flashserve" in launcher["file_mounts"]


def test_serve_takes_what_both_serve(config: AppConfig) -> None:
    ServeDeploySchema.model_validate(read(SERVE))
    assert config.security.api_keys_file is not None, "it listens on every address"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$")
    labels: dict[str, str] = {}


class EnvironmentVariable(Strict):
    name: str
    value: str


class Port(Strict):
    name: str = Field(max_length=15)
    containerPort: int = Field(ge=1, le=65535)  # noqa: N815 - as Kubernetes calls it


class Mount(Strict):
    name: str
    mountPath: str = Field(pattern="^/")  # noqa: N815
    readOnly: bool = False  # noqa: N815


class Container(Strict):
    name: str
    image: str
    env: list[EnvironmentVariable] = []
    ports: list[Port] = []
    resources: dict[str, dict[str, str]]
    securityContext: dict[str, Any] = {}  # noqa: N815
    volumeMounts: list[Mount] = []  # noqa: N815


class Volume(Strict):
    name: str
    emptyDir: dict[str, str] | None = None  # noqa: N815
    secret: dict[str, str] | None = None


class Pod(Strict):
    serviceAccountName: str  # noqa: N815
    terminationGracePeriodSeconds: int = 30  # noqa: N815
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []
    nodeSelector: dict[str, str] = {}  # noqa: N815
    tolerations: list[dict[str, str]] = []


class Template(Strict):
    spec: Pod


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template


class WorkerGroup(HeadGroup):
    groupName: str  # noqa: N815
    replicas: int = Field(0, ge=0)
    minReplicas: int = Field(0, ge=0)  # noqa: N815
    maxReplicas: int = Field(ge=1)  # noqa: N815


class Cluster(Strict):
    rayVersion: str  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    authOptions: dict[str, str]  # noqa: N815
    autoscalerOptions: dict[str, Any]  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class Spec(Strict):
    serveConfigV2: str  # noqa: N815
    rayClusterConfig: Cluster  # noqa: N815


class RayService(Strict):
    apiVersion: str = Field(pattern="^ray.io/v1$")  # noqa: N815
    kind: str = Field(pattern="^RayService$")
    metadata: Metadata
    spec: Spec


def groups(cluster: Cluster) -> Iterator[HeadGroup]:
    yield cluster.headGroupSpec
    yield from cluster.workerGroupSpecs


def test_a_ray_service_has_the_fields_that_kuberay_knows(service: dict[str, Any]) -> None:
    cluster = RayService.model_validate(service).spec.rayClusterConfig
    assert cluster.rayVersion == ray.__version__
    assert cluster.authOptions == {"mode": "token"}
    assert cluster.autoscalerOptions.keys() <= {"idleTimeoutSeconds", "upscalingMode"}
    names = [each.groupName for each in cluster.workerGroupSpecs]
    assert len(set(names)) == len(names)
    for group in groups(cluster):
        (container,) = group.template.spec.containers
        volumes = {each.name for each in group.template.spec.volumes}
        assert {mount.name for mount in container.volumeMounts} == volumes
        assert container.resources["limits"] == container.resources["requests"], "or Ray counts what isn't there"
        assert {each.name: each.value for each in container.env}.items() >= RAY_SETTINGS.items()


def test_pods_have_shared_memory_and_may_lock_it(service: dict[str, Any], config: AppConfig) -> None:
    cluster = RayService.model_validate(service).spec.rayClusterConfig
    head = cluster.headGroupSpec
    assert head.rayStartParams["num-gpus"] == "0"
    # KubeRay hands it to a shell.
    given = json.loads(json.loads(head.rayStartParams["resources"]))
    assert config.gateway.resources.keys() <= given.keys()
    for group in groups(cluster):
        (shm,) = [each.emptyDir for each in group.template.spec.volumes if each.name == "shm"]
        assert shm is not None
        assert shm["medium"] == "Memory"
        storage = config.storage
        wanted_bytes = 0 if group is head else storage.dram_bytes + storage.adapter_dram_bytes
        assert wanted_bytes + int(group.rayStartParams["object-store-memory"]) <= size_bytes(shm["sizeLimit"])
        (container,) = group.template.spec.containers
        assert size_bytes(shm["sizeLimit"]) < size_bytes(container.resources["limits"]["memory"]), "it counts as that"
        if group is not head:
            assert container.securityContext["capabilities"]["add"] == ["IPC_LOCK"]
            assert container.resources["limits"]["nvidia.com/gpu"] == "1"


def test_both_clusters_serve_the_same(service: dict[str, Any]) -> None:
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == read(SERVE)
