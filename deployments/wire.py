"""The token feed's format: length-prefixed MessagePack frames on one TCP connection from a replica to a gateway.

A frame is a 4-byte big-endian length and a body. The first frame is a ``Hello``; every other one is a list of
``TokenDelta``, or a ``ReplicaNews``. All streams that a replica generates for a gateway share the connection, so one
engine step costs one frame however many streams took part in it: a message a token through a Serve handle costs about
0.4 ms of processor time on either side, a delta in a shared frame a few microseconds.
"""

import asyncio
import struct

import msgspec

_LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 64 * 1024 * 1024
# A replica sends news this often, if nothing else: silence would look like death.
HEARTBEAT_S = 1.0
# What a delta without tokens asks of the gateway: to take the stream to another replica; to do so if it is quicker
# there than waiting for the stream's end, because another model waits for its room.
MOVE = "move"
MAKE_ROOM = "make room"

# (token ids, log probabilities, rank of the sampled token): the sampled token first, then the top ones by rank.
LogprobRow = tuple[list[int], list[float], int]


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """First frame: ``key`` is the secret that came with the gateway's request."""

    key: str


class TokenDelta(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What one stream gained since its last delta.

    ``token_ids`` are new output tokens; ``logprobs`` has a row for each of them when asked for. ``prompt_logprobs``
    and ``cached_tokens`` come with the first delta, and for a traced request ``queued_s``, how long it waited for its
    turn in the engine, if that is known. ``finish_reason`` is set on the last one. A delta that is nothing
    but a ``stop_reason`` of ``MOVE`` or ``MAKE_ROOM`` asks something of the gateway.
    """

    stream_id: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    cached_tokens: int | None = None
    logprobs: list[LogprobRow] | None = None
    prompt_logprobs: list[LogprobRow] | None = None
    queued_s: float | None = None

    def is_request(self) -> bool:
        """Tell whether it asks something of the gateway, and is no part of the stream."""
        return not self.token_ids and self.finish_reason is None and self.stop_reason in {MOVE, MAKE_ROOM}


class AdapterNews(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a replica has adapters of a model, by ``adapter_rows.adapter_key``; as many as fit, in order.

    Times are in seconds, until a request's adapter could be computed with.
    """

    host_s: float
    dram_s: float
    elsewhere_s: float
    """For all that isn't named."""
    slots: list[int]
    host: list[int]
    dram: list[int]


class EngineNews(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a replica says of one of its engines; times in seconds."""

    state: str
    age_s: float
    """How long it had been in its state when this was sent."""
    start_s: float
    wake_s: float
    """How long it takes to serve from cold and from asleep, as measured on this replica, from the tiers it has."""
    first_token_s: float
    """From being admitted to the first token, as measured lately; 0 before."""
    load: int
    """Sequences in hand or held when that was so."""
    in_hand: int
    """Sequences in hand or held now."""
    needs_bytes: int
    """What the device has to have free for it to be awake."""
    adapters: AdapterNews | None = None
    """None where it takes none, or nothing is known of them."""

    def same_as(self, other: "EngineNews | None") -> bool:
        """Whether there is nothing new in this, the age apart."""
        return other is not None and msgspec.structs.replace(other, age_s=self.age_s) == self


class ReplicaNews(msgspec.Struct, frozen=True):
    """What a replica tells a gateway on the feed: what has changed since it told it last."""

    pool: str
    replica_id: str
    engines: dict[str, EngineNews]
    gone: list[str]
    room_bytes: int
    """Free on the device, or held by engines that nobody uses."""


_encoder = msgspec.msgpack.Encoder()
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_frame_decoder = msgspec.msgpack.Decoder(list[TokenDelta] | ReplicaNews)


def encode_hello(hello: Hello) -> bytes:
    """Return the frame, length prefix included."""
    return _framed(_encoder.encode(hello))


def encode_deltas(deltas: list[TokenDelta]) -> bytes:
    """Return the frame, length prefix included."""
    return _framed(_encoder.encode(deltas))


def encode_news(news: ReplicaNews) -> bytes:
    """Return the frame, length prefix included."""
    return _framed(_encoder.encode(news))


def decode_hello(body: bytes) -> Hello:
    """Decode a frame's body; raises ``msgspec.MsgspecError`` when it is no Hello."""
    return _hello_decoder.decode(body)


def decode_frame(body: bytes) -> list[TokenDelta] | ReplicaNews:
    """Decode the body of a frame after the first; raises ``msgspec.MsgspecError`` when it is neither."""
    return _frame_decoder.decode(body)


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """Read one frame's body; None at the end of the connection.

    Raises:
        ValueError: the peer announces a frame of more than ``MAX_FRAME_BYTES``.
    """
    try:
        (length_bytes,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length_bytes > MAX_FRAME_BYTES:
            message = f"a frame of {length_bytes} bytes is announced, {MAX_FRAME_BYTES} are allowed"
            raise ValueError(message)
        return await reader.readexactly(length_bytes)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _framed(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body
