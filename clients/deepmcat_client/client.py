"""The client for code without asyncio: AsyncClient, driven from a loop on a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from deepmcat_client.async_client import (
    IMAGES_PER_CALL,
    IN_FLIGHT,
    KEEPALIVE_S,
    MAX_IMAGE_BYTES,
    TIMEOUT_S,
    AsyncClient,
)
from deepmcat_client.errors import ClientError
from deepmcat_client.loop_thread import LoopThread
from deepmcat_client.requests import Options, Source
from deepmcat_client.results import ArtifactInfo, Catalog, Categorization
from deepmcat_client.retry import RetryPolicy
from deepmcat_client.security import Tls, Token

Key = TypeVar("Key")


class Client:
    """Talks to one server, or to several; open it with `with`. Arguments and errors are AsyncClient's. Thread-safe."""

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        token: Token | None = None,
        timeout_s: float | None = TIMEOUT_S,
        retry: RetryPolicy | None = None,
        in_flight: int = IN_FLIGHT,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        channels: int = 1,
        streams: int | None = None,
        images_per_call: int = IMAGES_PER_CALL,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        self._client = AsyncClient(
            target,
            tls=tls,
            token=token,
            timeout_s=timeout_s,
            retry=retry,
            in_flight=in_flight,
            max_image_bytes=max_image_bytes,
            channels=channels,
            streams=streams,
            images_per_call=images_per_call,
            keepalive_s=keepalive_s,
        )
        self._thread: LoopThread | None = None

    def __enter__(self) -> Client:
        """Open the channel; the connection is made by the first call."""
        thread = LoopThread.acquire()
        try:
            thread.run(self._client.__aenter__())
        except BaseException:
            thread.release()
            raise
        self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the channel; calls under way are cancelled."""
        thread, self._thread = self._open_thread(), None
        try:
            thread.run(self._client.__aexit__(kind, error, traceback))
        finally:
            thread.release()

    def categorize(self, image: Source, options: Options | None = None) -> Categorization:
        """The answer for one image."""
        return self._open_thread().run(self._client.categorize(image, options))

    def categorize_stream(
        self, items: Iterable[tuple[Key, Source]], options: Options | None = None
    ) -> Iterator[tuple[Key, Categorization | ClientError]]:
        """For each (id, image) its id and answer, in order. An image without an answer gives its error."""
        thread = self._open_thread()
        return thread.iterate(self._client.categorize_stream(items, options))

    def get_artifact(self, artifact_id: str = "") -> ArtifactInfo:
        """The artifact in force, or the one asked for, and what serves it."""
        return self._open_thread().run(self._client.get_artifact(artifact_id))

    def list_categories(self, artifact_id: str = "") -> Catalog:
        """The categories of the catalog version in force."""
        return self._open_thread().run(self._client.list_categories(artifact_id))

    def _open_thread(self) -> LoopThread:
        if self._thread is None:
            raise RuntimeError("the client is not open; use it inside `with`")
        return self._thread
