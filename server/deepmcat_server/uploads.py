"""Images that come in chunks: assembled under the bounds that were announced, or read past."""

from __future__ import annotations

import asyncio

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_server.errors import InvalidRequest
from deepmcat_server.streams import Inbox

MAX_CHUNK_BYTES = 2**20

StreamInbox = Inbox[pb.CategorizeStreamRequest]


async def read_chunks(inbox: StreamInbox, size_bytes: int, *, chunk_timeout_s: float) -> bytes | None:
    """The announced image; None where the server is closing before its end. Raises InvalidRequest, ending the call."""
    chunks: list[bytes] = []
    missing = size_bytes
    while missing:
        chunk = await _next_chunk(inbox, missing, chunk_timeout_s)
        if chunk is None:
            return None
        missing -= len(chunk)
        chunks.append(chunk)
    return b"".join(chunks)


async def skip_chunks(inbox: StreamInbox, size_bytes: int, *, chunk_timeout_s: float) -> bool:
    """Read past an image that is refused already, keeping nothing. False where the server is closing before its end."""
    missing = size_bytes
    while missing:
        chunk = await _next_chunk(inbox, missing, chunk_timeout_s)
        if chunk is None:
            return False
        missing -= len(chunk)
    return True


async def _next_chunk(inbox: StreamInbox, missing: int, timeout_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(timeout_s):
            message = await inbox.next()
    except TimeoutError as error:
        raise InvalidRequest(f"no chunk came for {timeout_s:g} s; {missing} bytes are missing", "chunk") from error
    if message is None:
        if inbox.cut_off:
            return None
        raise InvalidRequest(f"the stream ended {missing} bytes before the announced size", "chunk")
    if message.WhichOneof("message") != "chunk":
        raise InvalidRequest(f"another image came {missing} bytes before the end of a chunked one", "item")
    chunk = bytes(message.chunk)  # the one read
    if not 0 < len(chunk) <= min(missing, MAX_CHUNK_BYTES):
        allowed = min(missing, MAX_CHUNK_BYTES)
        raise InvalidRequest(f"a chunk has {len(chunk)} bytes; 1 to {allowed} are allowed here", "chunk")
    return chunk
