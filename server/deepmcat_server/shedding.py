"""What cannot be answered whatever it is, refused before it is read.

Under overload most calls are refused, and what refusing costs is taken from those that are answered: to read a request
and to look at it costs more than to say no. How long any image would wait is known without it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection

from deepmcat_server.admission import Admission, Arrival
from deepmcat_server.errors import ServerBusy
from deepmcat_server.forecast import Forecaster
from deepmcat_server.interceptors import CALL, Before, Context

METHODS = frozenset({"Categorize", "ModelInfer"})
"""Those of one call for one answer. Images of streams wait instead."""


class Shedding(Before):
    """Refuses calls for which even the smallest image would be too late, on whatever artifact it were."""

    def __init__(
        self,
        admission: Admission,
        forecasters: Callable[[], Collection[Forecaster]],
        on_refused: Callable[[ServerBusy], None],
    ) -> None:
        """forecasters: of the artifacts that a call may mean. on_refused: told of each image that is not let in."""
        self._admission = admission
        self._forecasters = forecasters
        self._on_refused = on_refused

    async def before(self, service: str, method: str, context: Context) -> None:
        """Let the call go on, or raise ServerBusy."""
        if method in METHODS and self._admission.has_refused:
            self._check(context.time_remaining())

    def _check(self, remaining_s: float | None) -> None:
        deadline = asyncio.get_running_loop().time() + (math.inf if remaining_s is None else remaining_s)
        caller = CALL.get().caller
        try:
            self._admission.check_unread(
                Arrival(caller=caller, deadline=deadline, forecaster=forecaster, decodes=False)
                for forecaster in self._forecasters()
            )
        except ServerBusy as error:
            CALL.get().images = 1
            self._on_refused(error)
            raise
