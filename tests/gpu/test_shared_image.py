"""An image that several processes map: one fills it, however they die; the host's memory, and a GPU's.

Needs Python and torch, for a GPU also cuda.bindings: `python tests/gpu/test_shared_image.py`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import unittest
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SIZE_BYTES = 8 << 20


class Holder:
    """Another process; see ``image_holder``."""

    def __init__(self, test: unittest.TestCase, kind: str, root: str) -> None:
        command = [sys.executable, str(ROOT / "tests/support/image_holder.py"), kind, root, str(SIZE_BYTES)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        test.addCleanup(self.end)
        self.answer()

    def ask(self, line: str) -> str:
        self.say(line)
        return self.answer()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def holds(self) -> bool:
        """Whether it has host memory of an image mapped or open."""
        own = Path("/proc", str(self.process.pid))
        opened = [str(each.readlink()) for each in (own / "fd").iterdir()]
        return "memfd:image" in (own / "maps").read_text() + " ".join(opened)


class Suite:
    """What holds for every memory; run for each below."""

    kind: str

    def setUp(self: unittest.TestCase) -> None:
        root = tempfile.TemporaryDirectory()
        self.addCleanup(root.cleanup)
        self.root = root.name

    def holder(self) -> Holder:
        return Holder(self, self.kind, self.root)

    def test_one_fills_and_others_have_it(self) -> None:
        first, second = self.holder(), self.holder()
        assert first.ask("bring a 7") == "filled"
        assert second.ask("bring a 9") == "came"
        assert [each.ask("read") for each in (first, second)] == ["7", "7"]

    def test_another_key_is_another_image(self) -> None:
        first, second = self.holder(), self.holder()
        assert first.ask("bring a 7") == "filled"
        assert second.ask("bring b 9") == "filled"
        assert [each.ask("read") for each in (first, second)] == ["7", "9"]

    def test_it_outlives_who_filled_it_but_not_the_last(self) -> None:
        first, second = self.holder(), self.holder()
        first.ask("bring a 7")
        second.ask("bring a 9")
        first.kill()
        third = self.holder()
        assert third.ask("bring a 9") == "came"
        assert [each.ask("read") for each in (second, third)] == ["7", "7"]
        second.kill()
        third.kill()
        assert self.holder().ask("bring a 3") == "filled"

    def test_dropped_and_brought_it_is_where_it_was(self) -> None:
        first, second = self.holder(), self.holder()
        first.ask("bring a 7")
        second.ask("bring a 7")
        where = first.ask("address")
        assert first.ask("drop") == "dropped"
        assert first.ask("bring a 9") == "came"
        assert (first.ask("address"), first.ask("read")) == (where, "7")
        for each in (first, second):
            each.ask("drop")
        assert second.ask("bring a 5") == "filled"
        assert first.ask("bring a 5") == "came"
        assert (first.ask("address"), first.ask("read")) == (where, "5")

    def test_a_filling_that_fails_leaves_nothing_and_can_be_done_again(self) -> None:
        first, second = self.holder(), self.holder()
        assert first.ask("fail a") == "failed"
        assert second.ask("bring a 7") == "filled"
        assert first.ask("bring a 9") == "came"
        assert first.ask("read") == "7"

    def test_who_dies_while_filling_leaves_it_to_the_next(self) -> None:
        first, second = self.holder(), self.holder()
        assert first.ask("wait a 7") == "filling"
        second.say("bring a 9")
        first.kill()
        assert second.answer() == "filled"
        assert second.ask("read") == "9"

    def test_of_many_at_once_one_fills(self) -> None:
        holders = [self.holder() for _ in range(4)]
        assert holders[0].ask("wait a 7") == "filling"
        for each in holders[1:]:
            each.say("bring a 9")
        holders[0].say("go on")
        assert [each.answer() for each in holders] == ["filled", "came", "came", "came"]
        assert [each.ask("read") for each in holders] == ["7"] * 4

    def test_one_that_is_stopped_is_passed_over(self) -> None:
        first, second = self.holder(), self.holder()
        first.ask("bring a 7")
        second.ask("bring a 7")
        # Named by its number, so it is asked first or last; either way the other one answers.
        os.kill(first.process.pid, signal.SIGSTOP)
        third = self.holder()
        assert third.ask("bring a 9") == "came"
        assert third.ask("read") == "7"


class HostTest(Suite, unittest.TestCase):
    kind = "host"

    def test_nobody_can_write_what_others_read(self) -> None:
        first, second = self.holder(), self.holder()
        first.ask("bring a 7")
        second.ask("bring a 7")
        assert second.ask("write") == ""
        assert second.process.wait() == -signal.SIGSEGV
        assert first.ask("read") == "7"

    def test_dropped_it_is_free(self) -> None:
        first, second = self.holder(), self.holder()
        first.ask("bring a 7")
        second.ask("bring a 7")
        assert first.holds()
        for each in (first, second):
            each.ask("drop")
            assert not each.holds()


@unittest.skipUnless(torch.cuda.is_available() and find_spec("cuda"), "there is no GPU, or no cuda.bindings")
class CudaTest(Suite, unittest.TestCase):
    kind = "cuda"

    def test_dropped_it_is_free(self) -> None:
        first, second = self.holder(), self.holder()
        free_bytes, _ = torch.cuda.mem_get_info(0)
        first.ask("bring a 7")
        second.ask("bring a 7")
        taken_bytes = free_bytes - torch.cuda.mem_get_info(0)[0]
        assert taken_bytes >= SIZE_BYTES
        assert taken_bytes < 2 * SIZE_BYTES
        for each in (first, second):
            each.ask("drop")
        assert torch.cuda.mem_get_info(0)[0] == free_bytes


if __name__ == "__main__":
    unittest.main()
