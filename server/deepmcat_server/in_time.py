"""Work on an image that is inside: begun, done before its time is over, and compared with what was foretold."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from deepmcat_server.admission import Permit
from deepmcat_server.errors import ServerBusy

TOO_LATE = "the image could not be answered in its time; send it again, or allow it more"


@asynccontextmanager
async def in_time(permit: Permit, on_forecast_error: Callable[[float], object]) -> AsyncIterator[None]:
    """Answer within this. Raises ServerBusy where the image's time runs out before."""
    try:
        async with asyncio.timeout_at(None if permit.deadline == math.inf else permit.deadline) as timeout:
            permit.begin()
            yield
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise ServerBusy(TOO_LATE) from error
    if (off_s := permit.answered()) is not None:
        on_forecast_error(off_s)
