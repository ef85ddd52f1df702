"""How many images of a stream are sent and not yet answered: fewer where servers are busy, then one by one more."""

from __future__ import annotations

from deepmcat_client.errors import ClientError, QuotaExceeded, ServerBusy


class SendWindow:
    """Halved where a server has no room for an image, one more with every window of answers, as TCP does it.

    Sending an image again to a server that is full costs that server most of what answering costs; sending fewer at
    once is what helps it. One refusal halves once: those that were sent together are refused together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = float(most)
        self._until_next = 0  # answers to hear before the next halving

    @property
    def size(self) -> int:
        """How many."""
        return max(1, int(self._size))

    def heard(self, answer: object) -> None:
        """Take notice of an answer."""
        self._until_next -= 1
        if isinstance(answer, ServerBusy | QuotaExceeded):
            if self._until_next <= 0:
                self._until_next = self.size
                self._size = max(1.0, self._size / 2)
        elif not isinstance(answer, ClientError):
            self._size = min(float(self._most), self._size + 1 / self._size)
