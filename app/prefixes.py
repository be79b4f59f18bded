"""Which replica has computed the beginning of a prompt before: what prefix affinity saves, as far as a gateway knows.

Covers: this gateway's own requests. An engine may have dropped a prefix since; then the estimate was wrong, no more.
"""

from collections import OrderedDict
from collections.abc import Sequence

# Shorter prefixes are not worth knowing.
BLOCK_TOKENS = 64
MAX_BLOCKS = 65_536


class PrefixTable:
    """The last blocks of prompts, by model and adapter, with the replicas they went to."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._replicas: OrderedDict[int, str] = OrderedDict()

    def computed(self, blocks: Sequence[int]) -> dict[str, int]:
        """Return, by replica, how many tokens of the beginning of a prompt of these blocks it has computed before."""
        found: dict[str, int] = {}
        for index, block in enumerate(blocks):
            replica_id = self._replicas.get(block)
            if replica_id is None:
                break
            found[replica_id] = (index + 1) * BLOCK_TOKENS
        return found

    def sent(self, blocks: Sequence[int], replica_id: str) -> None:
        """Remember that a prompt of these blocks went to a replica."""
        for block in blocks:
            self._replicas[block] = replica_id
            self._replicas.move_to_end(block)
        while len(self._replicas) > self._max_blocks:
            self._replicas.popitem(last=False)

    def __repr__(self) -> str:
        return f"<PrefixTable {len(self._replicas)} blocks>"


def blocks_of(group: str, token_ids: Sequence[int]) -> list[int]:
    """Return a number for each whole block of a prompt, which stands for everything up to its end.

    ``group`` tells apart what shares no prefixes, however alike.
    """
    blocks, before = [], hash(group)
    for end in range(BLOCK_TOKENS, len(token_ids) + 1, BLOCK_TOKENS):
        before = hash((before, tuple(token_ids[end - BLOCK_TOKENS : end])))
        blocks.append(before)
    return blocks
