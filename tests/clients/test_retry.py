"""The parts that decide, by themselves and with a clock of the test's: budget, window, choice of a connection."""

from __future__ import annotations

import random

from deepmcat_client.connections import Connections, ConnectionSettings
from deepmcat_client.errors import CorruptImage, ServerBusy, Unavailable
from deepmcat_client.retry import RetryBudget
from deepmcat_client.targets import endpoints, parse_targets
from deepmcat_client.window import SendWindow


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_retries_of_an_outage_are_bounded() -> None:
    """However many calls fail at once, beyond the first few there is one retry a second."""
    clock = Clock()
    budget = RetryBudget(10, 1, clock)

    assert [budget.take() for _ in range(10)] == [0.0] * 10
    assert [budget.take() for _ in range(3)] == [1.0, 2.0, 3.0]
    clock.now += 3
    assert budget.take() == 1.0


def test_answers_earn_retries_and_time_does_too() -> None:
    """A tenth of the answers may be tried again, and a quiet minute fills the budget, but no further."""
    clock = Clock()
    budget = RetryBudget(2, 1, clock)
    for _ in range(3):
        budget.take()
    budget.answered(10)
    assert budget.take() == 1.0
    budget.give_back()
    clock.now += 3600

    assert [budget.take() for _ in range(3)] == [0.0, 0.0, 1.0]


def test_refusals_of_one_window_halve_it_once() -> None:
    """What was sent together is refused together; more refusals after that halve again, down to one."""
    window = SendWindow(64)
    for _ in range(64):
        window.heard(ServerBusy(""))
    assert window.size == 32
    for _ in range(500):
        window.heard(ServerBusy(""))
    assert window.size == 1


def test_a_window_grows_by_one_a_window_up_to_its_bound() -> None:
    """An image's own error says nothing of room."""
    window = SendWindow(8)
    for _ in range(8):
        window.heard(ServerBusy(""))
    for _ in range(100):
        window.heard(CorruptImage(""))
    assert window.size == 4
    for _ in range(6):
        window.heard("an answer")
    assert window.size == 5
    for _ in range(100):
        window.heard("an answer")
    assert window.size == 8


def connections(clock: Clock, *targets: str, channels: int = 1) -> Connections:
    """To nobody: a channel connects when it is used."""
    settings = ConnectionSettings(targets=targets, tls=None, token=None, channels=channels, keepalive_s=20)
    return Connections(settings, replaced_after_s=100, clock=clock, rng=random.Random(0))


async def test_calls_go_where_the_fewest_are() -> None:
    """Open calls are spread evenly over targets and channels."""
    pool = connections(Clock(), "a:1", "b:1", channels=2)
    leases = [pool.lease() for _ in range(8)]
    leased = [await lease.__aenter__() for lease in leases]

    assert sorted(connection.target for connection in leased) == ["a:1"] * 4 + ["b:1"] * 4
    assert {connection.calls for connection in leased} == {2}
    assert len({id(connection) for connection in leased}) == 4
    for lease in leases:
        await lease.__aexit__(None, None, None)
    await pool.aclose()


async def test_a_failing_server_is_left_alone_for_a_while() -> None:
    """Longer with every failure in a row, and not longer than half a minute; an answer ends it."""
    clock = Clock()
    pool = connections(clock, "a:1", "b:1")

    async def asked() -> set[str]:
        found = set()
        for _ in range(4):
            async with pool.lease() as connection:
                found.add(connection.target)
                last[connection.target] = connection
        return found

    last: dict[str, object] = {}
    assert await asked() == {"a:1", "b:1"}
    bad = last["a:1"]
    pool.failed(bad, Unavailable(""))  # type: ignore[arg-type]
    assert await asked() == {"b:1"}
    clock.now += 1.01
    assert await asked() == {"a:1", "b:1"}
    for _ in range(50):
        pool.failed(bad, Unavailable(""))  # type: ignore[arg-type]
    clock.now += 29
    assert await asked() == {"b:1"}
    clock.now += 1.01
    assert await asked() == {"a:1", "b:1"}
    pool.failed(bad, ServerBusy("", retry_after_s=20))  # type: ignore[arg-type]
    pool.answered(bad)  # type: ignore[arg-type]
    assert await asked() == {"a:1", "b:1"}
    await pool.aclose()


async def test_where_all_fail_the_one_whose_time_is_up_first_is_asked() -> None:
    """A client never runs out of servers to try."""
    clock = Clock()
    pool = connections(clock, "a:1", "b:1")
    asked = []
    for wait_s in (5, 9, 20):
        async with pool.lease() as connection:
            pool.failed(connection, ServerBusy("", retry_after_s=wait_s))
            asked.append(connection.target)
    assert asked[0] != asked[1]
    assert asked[2] == asked[0]
    await pool.aclose()


async def test_a_channel_is_replaced_and_its_calls_end_on_it() -> None:
    """After a few minutes new calls look the name up again; the old channel closes with its last call."""
    clock = Clock()
    pool = connections(clock, "a:1")
    async with pool.lease() as old:
        clock.now += 121
        async with pool.lease() as new:
            assert new is not old
            assert old.channel.get_state().name != "SHUTDOWN"
    assert old.channel.get_state().name == "SHUTDOWN"
    async with pool.lease() as again:
        assert again is new
    await pool.aclose()
    assert new.channel.get_state().name == "SHUTDOWN"


def test_targets_are_read_as_people_write_them() -> None:
    """Commas between servers, each server once, gRPC's own names as they are."""
    assert parse_targets("a:1, b:2,a:1") == ("a:1", "b:2")
    assert parse_targets("ipv4:10.0.0.1:1,10.0.0.2:1") == ("ipv4:10.0.0.1:1,10.0.0.2:1",)
    assert endpoints("ipv4:10.0.0.1:1,10.0.0.2:1")[1] == ("10.0.0.2", 1)
    assert endpoints("dns:///deepmcat.svc:50051") == (("deepmcat.svc", 50051),)
    assert endpoints("dns://8.8.8.8/deepmcat.svc:50051") == (("deepmcat.svc", 50051),)
    assert endpoints("[::1]:50051") == (("::1", 50051),)
    assert endpoints("unix:/run/deepmcat.sock") == ()
