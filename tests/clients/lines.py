"""A line between client and server that a test can cut, or let die without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Line:
    """Forwards connections to `target`. connections: how many there have been."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.connections = 0
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._open: set[_Connection] = set()

    def cut(self) -> None:
        """Close every connection, as a proxy does that restarts."""
        for connection in tuple(self._open):
            connection.abort()

    def freeze(self) -> None:
        """Forward nothing more on those that are open and close none, as a firewall does that has forgotten them."""
        for connection in self._open:
            connection.frozen = True

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection, until it ends."""
        self.connections += 1
        connection = _Connection(reader, writer, *await asyncio.open_connection(self._host, self._port))
        self._open.add(connection)
        try:
            await connection.forward()
        finally:
            self._open.discard(connection)


class _Connection:
    def __init__(
        self,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self.frozen = False
        self._pairs = ((client, to_server), (server, to_client))

    async def forward(self) -> None:
        """Both ways, until either side closes."""
        tasks = [asyncio.create_task(self._pump(*pair)) for pair in self._pairs]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self.abort()
            await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> None:
        """Reset both sides."""
        for _, writer in self._pairs:
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(2**16):
            if not self.frozen:
                writer.write(content)
                await writer.drain()


@asynccontextmanager
async def line_to(target: str) -> AsyncIterator[Line]:
    """An open line."""
    line = Line(target)
    server = await asyncio.start_server(line.accept, "127.0.0.1", 0)
    line.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
        line.cut()
        await asyncio.sleep(0)
