"""A process with a shared image, told on its standard input what to do, a line each; every answer is a line too.

Usage: python tests/support/image_holder.py host|cuda ROOT SIZE_BYTES

``bring KEY BYTE`` answers ``filled`` or ``came``, having filled it with that byte if nobody had it, ``wait KEY BYTE``
does so after another line, in the midst of filling, ``fail KEY`` fails while it fills, ``read`` answers the byte if all
are the same, ``write`` tries to, ``address`` and ``drop`` do as they say.
"""

import ctypes
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from storage.errors import StorageError
from storage.shared_image import SharedImage
from tests.support.host_memory import HostMemory


class HostHolder:
    def __init__(self, root: Path, size_bytes: int) -> None:
        self.root, self.size_bytes = root, size_bytes
        self.image = self.make()

    def make(self) -> SharedImage:
        return SharedImage(HostMemory(), self.size_bytes)

    def bring(self, key: str, byte: str) -> str:
        return "came" if self.image.bring(key, lambda: self.fill(byte), self.root) else "filled"

    def wait(self, key: str, byte: str) -> str:
        def fill() -> None:
            print("filling", flush=True)
            sys.stdin.readline()
            self.fill(byte)

        return "came" if self.image.bring(key, fill, self.root) else "filled"

    def fail(self, key: str) -> str:
        def fill() -> None:
            message = "half way"
            raise ValueError(message)

        try:
            self.image.bring(key, fill, self.root)
        except ValueError:
            return "failed"
        return "came"

    def read(self) -> str:
        found = set(ctypes.string_at(self.image.address, self.size_bytes))
        return str(found.pop()) if len(found) == 1 else "differ"

    def write(self) -> str:
        self.fill("1")
        return "written"

    def address(self) -> str:
        return str(self.image.address)

    def drop(self) -> str:
        self.image.drop()
        return "dropped"

    def fill(self, byte: str) -> None:
        ctypes.memset(self.image.address, int(byte), self.size_bytes)


def cuda_holder(root: Path, size_bytes: int) -> HostHolder:
    import torch  # noqa: PLC0415 - processes that don't need it are there sooner

    from storage.cuda import CudaMemory, memory_at  # noqa: PLC0415 - as above

    device = torch.device("cuda", 0)

    class CudaHolder(HostHolder):
        def make(self) -> SharedImage:
            return SharedImage(CudaMemory(device), self.size_bytes)

        def read(self) -> str:
            low, high = memory_at(self.image.address, self.size_bytes, device).aminmax()
            return str(int(low)) if low == high else "differ"

        def fill(self, byte: str) -> None:
            memory_at(self.image.address, self.size_bytes, device).fill_(int(byte))
            torch.cuda.synchronize(device)

    return CudaHolder(root, size_bytes)


def main() -> None:
    holder = (cuda_holder if sys.argv[1] == "cuda" else HostHolder)(Path(sys.argv[2]), int(sys.argv[3]))
    print("ready", flush=True)
    while line := sys.stdin.readline().split():
        try:
            print(getattr(holder, line[0])(*line[1:]), flush=True)
        except StorageError as error:
            print(error, flush=True)


if __name__ == "__main__":
    main()
