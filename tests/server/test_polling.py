"""Looking again and again."""

from __future__ import annotations

import logging

from deepmcat_server.polling import Polling


async def test_a_look_that_fails_is_told_and_looks_again(until, caplog):
    """An error that nobody thought of is one line in the log each time, and the watch goes on; the other look too."""
    looks: list[str] = []

    async def failing() -> None:
        looks.append("failing")
        raise OSError("a disk that is gone")

    async def good() -> None:
        looks.append("good")

    with caplog.at_level(logging.ERROR, "deepmcat"):
        async with Polling([failing, good], poll_s=0.001):
            await until(lambda: looks.count("failing") >= 2 and looks.count("good") >= 2)
    failures = [record for record in caplog.records if record.getMessage() == "watching failed"]
    assert len(failures) == looks.count("failing")


async def test_no_period_is_no_look():
    """0 turns watching off."""
    looks: list[str] = []

    async def look() -> None:
        looks.append("look")

    async with Polling([look], poll_s=0):
        pass
    assert looks == []
