"""The fair queue alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from deepmcat_server.fairness import FairQueue

Queue = FairQueue[tuple[str, int]]


def served(queue: Queue, most: int = 10**6) -> list[tuple[str, int]]:
    """What is served, in order."""
    order: list[tuple[str, int]] = []
    while len(order) < most and (item := queue.first()) is not None:
        queue.serve(item, item[0])
        order.append(item)
    return order


def test_one_caller_is_first_come_first_served():
    """A caller that is alone gets its items in the order in which they came, whatever they cost."""
    queue: Queue = FairQueue()
    for number, cost in enumerate([5, 1, 9, 1]):
        queue.add(("a", number), "a", cost)
    assert served(queue) == [("a", number) for number in range(4)]
    assert len(queue) == 0


def test_newcomer_is_next():
    """Who comes while another has thousands waiting is served next, and has no credit for the time before."""
    queue: Queue = FairQueue()
    for number in range(1000):
        queue.add(("greedy", number), "greedy", 1)
    served(queue, 500)
    for number in range(3):
        queue.add(("polite", number), "polite", 1)
    callers = [caller for caller, _ in served(queue, 6)]
    assert callers[0] == "polite"
    assert Counter(callers) == {"polite": 3, "greedy": 3}


def test_turns_go_by_cost():
    """A caller of large items gets as much as one of small ones: fewer items."""
    queue: Queue = FairQueue()
    for number in range(100):
        queue.add(("large", number), "large", 8)
        queue.add(("small", number), "small", 1)
    counts = Counter(caller for caller, _ in served(queue, 90))
    assert counts["large"] in {10, 11}


def test_who_leaves_costs_nothing():
    """An item that leaves is not served, and its caller's turn is not used up by it."""
    queue: Queue = FairQueue()
    for caller in "ab":
        for number in range(3):
            queue.add((caller, number), caller, 1)
    queue.discard(("a", 0), "a")
    queue.discard(("a", 0), "a")
    assert served(queue) == [("a", 1), ("b", 0), ("a", 2), ("b", 1), ("b", 2)]


def test_a_caller_that_comes_and_goes_keeps_its_debt():
    """Having nothing waiting for a moment does not wipe out what a caller has just had."""
    queue: Queue = FairQueue()
    queue.add(("a", 0), "a", 8)
    for number in range(20):
        queue.add(("b", number), "b", 1)
    assert served(queue, 1) == [("a", 0)]
    queue.add(("a", 1), "a", 8)
    assert served(queue, 8) == [("b", number) for number in range(8)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.integers(0, 2)), max_size=60))
def test_everybody_is_served_once_and_own_items_in_order(steps):
    """Whatever is added, served and taken out, nothing is lost, doubled, or passed by another of its caller."""
    queue: Queue = FairQueue()
    order: list[tuple[str, int]] = []
    gone = set()
    for number, (caller, cost, what) in enumerate(steps):
        queue.add((caller, number), caller, cost)
        if what == 1:
            order += served(queue, 1)
        elif what == 2:
            queue.discard((caller, number), caller)
            gone.add((caller, number))
        assert queue.count(caller) == sum(1 for c, _, w in steps[: number + 1] if c == caller) - sum(
            1 for item in {*order, *gone} if item[0] == caller
        )
    order += served(queue)
    assert sorted(order) == sorted({(c, n) for n, (c, _, _) in enumerate(steps)} - gone)
    for caller in "abc":
        own = [number for c, number in order if c == caller]
        assert own == sorted(own)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9)), min_size=1, max_size=60), st.integers(0, 20))
def test_what_is_ahead_is_what_is_served_before(items, first):
    """`ahead` tells the cost that is served before a newcomer, to within one item of each other caller."""
    queue: Queue = FairQueue()
    costs = {}
    for number, (caller, cost) in enumerate(items):
        queue.add((caller, number), caller, cost)
        costs[caller, number] = cost
    served(queue, first)
    foretold = queue.ahead("a", {})
    queue.add(("a", 10**6), "a", 1)
    order = served(queue)
    before = sum(costs[item] for item in order[: order.index(("a", 10**6))])
    assert abs(before - foretold) <= 9 * 3


def test_what_comes_meanwhile_counts_as_far_as_it_passes():
    """Items that are still to come are ahead of a newcomer's up to what is its fair share, and no more."""
    queue: Queue = FairQueue()
    for number in range(10):
        queue.add(("a", number), "a", 1)
    assert queue.ahead("a", {}) == 10
    assert queue.ahead("a", {"b": 4}) == 14
    assert queue.ahead("a", {"b": 100}) == 20
    assert queue.ahead("b", {"b": 3}) == 6
