"""Work on an image that is inside: begun, done before its time is over, and compared with what was foretold."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import TracebackType

from deepmcat_server.admission import Permit
from deepmcat_server.errors import ServerBusy

TOO_LATE = "the image could not be answered in its time; send it again, or allow it more"


class in_time:  # noqa: N801  # used as asyncio.timeout is
    """Answer within this. Raises ServerBusy where the image's time runs out before."""

    def __init__(self, permit: Permit, on_forecast_error: Callable[[float], object]) -> None:
        self._permit = permit
        self._on_forecast_error = on_forecast_error
        self._timeout = asyncio.timeout_at(None if permit.deadline == math.inf else permit.deadline)

    async def __aenter__(self) -> None:
        """The image begins."""
        await self._timeout.__aenter__()
        self._permit.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """It has been answered, or not."""
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as late:
            raise ServerBusy(TOO_LATE) from late
        if kind is None and (off_s := self._permit.answered()) is not None:
            self._on_forecast_error(off_s)
