"""The transfer on a real GPU: right bytes by either path, addresses that stay, memory that is unlocked afterwards.

Needs Python, torch and safetensors, nothing else: `python tests/gpu/test_transfer.py`. Without a GPU it is skipped.
"""

import sys
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))
from storage.cuda import CudaDevice
from storage.device_source import DeviceSource
from storage.errors import DeviceError
from storage.snapshot_file import read_entries
from storage.transfer import Transfer
from storage.weights import map_file, write_tensors

MEMORY_DIR = Path("/dev/shm")  # noqa: S108 - the dram tier
PIECE_BYTES = 1 << 20


class UnlockableDevice(CudaDevice):
    def register(self, memory: torch.Tensor) -> None:
        raise DeviceError("cuda", f"{memory.nbytes} bytes are not to be locked")


@unittest.skipUnless(torch.cuda.is_available(), "there is no GPU")
class TransferTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(dir=MEMORY_DIR)
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name, "rank-000.safetensors")
        torch.manual_seed(1)
        tensors = {f"t{n}": torch.randn(n * 100_003 % 3_000_000 + 1).to(torch.bfloat16) for n in range(40)}
        write_tensors(self.path, tensors | {"int8": torch.arange(-128, 128, dtype=torch.int8)})
        self.wanted = load_file(self.path, device="cuda")
        self.device = torch.device("cuda", 0)

    def fill_twice(self, run) -> set[str]:  # noqa: ANN001 - from targets to report
        """An engine wakes more than once; returns the paths that were taken."""
        targets = {name: torch.empty_like(tensor) for name, tensor in self.wanted.items()}
        addresses = {name: target.data_ptr() for name, target in targets.items()}
        paths = set()
        for _ in range(2):
            for target in targets.values():
                target.zero_()
            torch.cuda.synchronize()
            paths.add(run(targets).path)
            for name, tensor in self.wanted.items():
                same = torch.equal(targets[name].view(torch.uint8), tensor.view(torch.uint8))
                self.assertTrue(same, name)  # noqa: PT009 - unittest is all there is
        self.assertEqual(addresses, {name: target.data_ptr() for name, target in targets.items()})  # noqa: PT009
        return paths

    def test_either_path_brings_every_byte(self) -> None:
        for kind, path in ((CudaDevice, "registered"), (UnlockableDevice, "ring")):
            with self.subTest(path):
                memory = map_file(self.path, shared=True)
                transfer = Transfer(kind(self.device), memory, read_entries(self.path), piece_bytes=PIECE_BYTES)
                self.assertEqual(self.fill_twice(transfer.run), {path})  # noqa: PT009
                transfer.close()

    def test_memory_is_locked_in_the_background_and_unlocked(self) -> None:
        for _ in range(2):  # what was not unlocked could not be locked again at the same address
            source = DeviceSource(self.path, read_entries(self.path), lambda: CudaDevice(self.device))
            self.assertEqual(self.fill_twice(source.fill), {"registered"})  # noqa: PT009
            source.close()


if __name__ == "__main__":
    unittest.main()
