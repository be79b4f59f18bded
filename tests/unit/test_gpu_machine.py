"""A machine for trying GPUs has Python, torch and safetensors and nothing else: what runs there must import no more."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What torch itself can't be imported without; numpy is none of it.
WITH_TORCH = ["torch", "torchgen", "functorch", "typing_extensions", "sympy", "mpmath", "filelock", "jinja2", "fsspec"]
BARE = f"""
import sys
allowed = {{*sys.stdlib_module_names, *{WITH_TORCH!r}, "markupsafe", "networkx", "safetensors", "storage"}}

class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, OnlyThese())
sys.path[:0] = [{str(ROOT)!r}]
"""
TRANSFER = """
import tempfile, torch
from pathlib import Path
from storage.device_source import DeviceSource
from storage.fake_device import FakeDevice
from storage.snapshot_file import read_entries
from storage.weights import write_tensors
from safetensors.torch import load_file
import storage.cuda

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory, "rank-000.safetensors")
    tensors = {"a": torch.arange(5000.0), "b": torch.zeros(0), "c": torch.ones(3, 2, dtype=torch.bfloat16).t()}
    write_tensors(path, tensors)
    for lockable_bytes in (None, 0):
        targets = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
        DeviceSource(path, read_entries(path), lambda: FakeDevice(2, lockable_bytes)).fill(targets)
        assert all(torch.equal(targets[name], tensor) for name, tensor in tensors.items())
        assert all(torch.equal(targets[name], tensor) for name, tensor in load_file(path).items())
print("whole")
"""


def run_bare(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", BARE + program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_transfer_runs_there() -> None:
    done = run_bare(TRANSFER)
    assert done.stdout == "whole\n", done.stderr


def test_its_tests_and_its_bench_run_there() -> None:
    for name in ("test_transfer", "test_shared_image"):
        path = str(ROOT / f"tests/gpu/{name}.py")
        tests = run_bare(f"import runpy; runpy.run_path({path!r}, run_name='there')")
        assert tests.returncode == 0, tests.stderr
    bench = run_bare(
        f"import runpy; sys.argv = ['transfer_gpu.py', '--help']; "
        f"runpy.run_path({str(ROOT / 'tests/bench/transfer_gpu.py')!r}, run_name='__main__')"
    )
    assert "How fast a snapshot reaches a GPU" in bench.stdout, bench.stderr


def test_the_bare_machine_is_bare() -> None:
    assert "No module named 'numpy'" in run_bare("import numpy").stderr
    assert "No module named 'boto3'" in run_bare("import storage.s3").stderr
