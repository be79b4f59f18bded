"""The checksum of a chunk: XXH3, 128 bits.

It has to find damage at the speed of memory, since every byte of every copy is checked; on one core SHA-256 manages
less than a network card. It is no protection against forgery: what a snapshot is, its id says, made with SHA-256.
"""

import xxhash

DIGITS = 32


class ChunkChecksum:
    """The checksum of a chunk that comes in pieces."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()

    def update(self, piece: bytes | memoryview) -> None:
        """Add the next piece."""
        self._hash.update(piece)

    def digits(self) -> str:
        """Return the checksum of what was added, ``DIGITS`` hex digits."""
        return self._hash.hexdigest()


def chunk_checksum(chunk: bytes | memoryview) -> str:
    """Return a chunk's checksum, ``DIGITS`` hex digits."""
    return xxhash.xxh3_128_hexdigest(chunk)
