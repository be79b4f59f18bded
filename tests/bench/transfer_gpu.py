"""Measures the transfer of a snapshot from host memory to a GPU, beside a pinned copy of the same size and safetensors.

Needs Python, torch and safetensors, nothing else. First the bytes are compared on both paths, then the ways alternate.

Usage: python tests/bench/transfer_gpu.py [--gib 4] [--rounds 9]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))
from storage.cuda import CudaDevice
from storage.errors import DeviceError
from storage.snapshot_file import read_entries
from storage.transfer import Transfer
from storage.weights import map_file, write_tensors

TENSOR_BYTES = 64 * 2**20
MEMORY_DIR = Path("/dev/shm")  # noqa: S108 - the dram tier
RESULTS_DIR = Path("bench-results")
TARGET = 0.9


class UnlockableDevice(CudaDevice):
    """Forces the ring."""

    def register(self, memory: torch.Tensor) -> None:
        raise DeviceError("cuda", f"{memory.nbytes} bytes are not to be locked")


def timed(way: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin_s = time.perf_counter()
    way()
    torch.cuda.synchronize()
    return time.perf_counter() - begin_s


def result(name: str, samples: list[float], unit: str, target: float | None = None, other: str | None = None) -> dict:
    value = statistics.median(samples)
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "target": target,
        "direction": None if target is None else "min",
        "met": None if target is None else value >= target,
        "compared_with": other,
        "samples": samples,
    }


def measure(path: Path, rounds: int) -> list[dict]:
    device = torch.device("cuda")
    memory, entries = map_file(path, shared=True), read_entries(path)
    size_bytes = sum(entry.end - entry.start for entry in entries)
    targets = {entry.name: torch.empty(entry.shape, dtype=torch.bfloat16, device=device) for entry in entries}
    transfers, lock_s = {}, {}
    for name, kind in {"FlashServe, registered": CudaDevice, "FlashServe, ring": UnlockableDevice}.items():
        begin_s = time.perf_counter()
        transfers[name] = Transfer(kind(device), memory, entries)
        lock_s[name] = time.perf_counter() - begin_s
        for target in targets.values():
            target.zero_()
        transfers[name].run(targets)
        wanted = load_file(path, device="cuda")
        assert all(torch.equal(targets[key].view(torch.int16), wanted[key].view(torch.int16)) for key in targets)
        del wanted
        print(f"{name}: every byte is right; path {transfers[name].path}; prepared in {lock_s[name]:.2f} s", flush=True)
    pinned = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
    on_device = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    ways: dict[str, Callable[[], object]] = {
        "pinned copy": lambda: on_device.copy_(pinned, non_blocking=True),
        "safetensors": lambda: load_file(path, device="cuda"),
    } | {name: (lambda transfer=transfer: transfer.run(targets)) for name, transfer in transfers.items()}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for round_index in range(rounds + 1):
        names = list(ways)
        for name in names[round_index % len(names) :] + names[: round_index % len(names)]:
            speed = size_bytes / timed(ways[name]) / 1e9
            if round_index:  # the first is a warm-up
                speeds[name].append(speed)
    results = [result(name, samples, "GB/s") for name, samples in speeds.items()]
    for ours in transfers:
        for other, target in (("pinned copy", TARGET), ("safetensors", 1.0)):
            ratios = [a / b for a, b in zip(speeds[ours], speeds[other], strict=True)]
            results.append(result(ours, ratios, "ratio", target, other))
        results.append(result(f"{ours}: preparing", [lock_s[ours]], "s"))
    return results


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast a snapshot reaches a GPU.")
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no GPU here.")
    count = max(1, int(arguments.gib * 2**30 / TENSOR_BYTES))
    with tempfile.TemporaryDirectory(dir=MEMORY_DIR) as directory:
        path = Path(directory, "rank-000.safetensors")
        shape = (TENSOR_BYTES // 2 // 1024, 1024)
        write_tensors(path, {f"t{n}": torch.randn(shape).to(torch.bfloat16) for n in range(count)})
        results = measure(path, arguments.rounds)
    machine = {"gpu": torch.cuda.get_device_name(), "os": platform.platform(), "torch": torch.__version__}
    RESULTS_DIR.mkdir(exist_ok=True)
    report = {"name": "storage-gpu", "machine": machine, "commit": commit(), "results": results}
    (RESULTS_DIR / "storage-gpu.json").write_text(json.dumps(report, indent=2))
    print(machine["gpu"])
    for row in results:
        verdict = "" if row["target"] is None else f"≥ {row['target']}: {'met' if row['met'] else 'MISSED'}"
        print(f"  {row['name']:32} {row['value']:8.3f} {row['unit']:6} {row['compared_with'] or '':14} {verdict}")


if __name__ == "__main__":
    main()
