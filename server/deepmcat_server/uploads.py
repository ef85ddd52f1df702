"""Images that come in chunks: assembled under the bounds that were announced, or read past."""

from __future__ import annotations

import asyncio
import io

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat_server.errors import InvalidRequest
from deepmcat_server.streams import Inbox

MAX_CHUNK_BYTES = 2**20

StreamInbox = Inbox[pb.CategorizeStreamRequest]


class Upload:
    """An announced image on its way. missing: how many bytes have not come."""

    def __init__(self, size_bytes: int) -> None:
        self.missing = size_bytes
        self._content = io.BytesIO()  # grows with what has come, and gives it up without a copy

    async def read(self, inbox: StreamInbox, *, chunk_timeout_s: float, deadline: float) -> bytes | None:
        """The image; None where the server is closing before its end.

        Raises TimeoutError where it is not whole at `deadline`, by the loop's clock, and InvalidRequest, which ends
        the call. The deadline is looked at between chunks: a wait that is cut off could lose the chunk that ends it.
        """
        now = asyncio.get_running_loop().time
        while self.missing:
            if now() >= deadline:
                raise TimeoutError
            chunk = await _next_chunk(inbox, self.missing, chunk_timeout_s)
            if chunk is None:
                return None
            self.missing -= len(chunk)
            self._content.write(chunk)
        return self._content.getvalue()


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
