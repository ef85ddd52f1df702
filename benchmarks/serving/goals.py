"""The goals, and whether what was measured meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.serving.artifacts import LITE0, VGG

Found = Mapping[str, Any]
PLAIN = ("plain asyncio servicer", "plain, queue of 64")
Form = Literal["share", "times", "count", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """row: where it is measured. at_least: or at most. got: of what the row found; where it finds nothing, None."""

    row: str
    text: str
    limit: float
    at_least: bool
    form: Form
    got: Callable[[Found], float]

    def value(self, found: Found) -> float | None:
        """The median of the rounds; None where it was not measured."""
        try:
            return self.got(found)
        except (KeyError, TypeError, ValueError):  # a peer that is missing, or a row that is not there
            return None

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def asked(self) -> str:
        if self.form == "count" and self.limit == 0:
            return "0"
        return ("≥ " if self.at_least else "≤ ") + said(self.limit, self.form)


def said(value: float, form: Form) -> str:
    match form:
        case "share":
            return f"{value:.1%}"
        case "times":
            return f"{value:.2f}×"
        case "seconds":
            return f"{value:.1f} s"
        case _:
            return f"{value:,.0f}"


def _own(servers: Found) -> Iterator[Found]:
    """What is ours, by each way to call it."""
    return (of for name, of in servers.items() if name.startswith("ours"))


def _kept_up(servers: Found) -> Found:
    """The servers, where the load kept up with its rate. Raises ValueError where it did not: there is no verdict."""
    if not all(of["kept_up"] for of in servers.values()):
        raise ValueError
    return servers


def _worst(servers: Found, name: str) -> float:
    """The lowest median of ours."""
    return min(of[name]["median"] for of in _own(_kept_up(servers)))


def _over_plain(found: Found) -> float:
    """Over the better of those that one would write oneself, with a queue that ends and without."""
    servers = _kept_up(found["overloaded"])
    plain = max(of["good_per_s"]["median"] for name, of in servers.items() if name in PLAIN)
    return servers["ours"]["good_per_s"]["median"] / max(1.0, plain)


def _lowest(found: Found, *keys: str) -> float:
    """The lowest over the parts of a row that have these."""
    values = []
    for part in found.values():
        for key in keys:
            part = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping):
            values.append(part["median"])
    return min(values)


GOALS = (
    Goal(
        row="overload", text="good answers a second at 2.5× capacity, of capacity", limit=0.95, at_least=True,
        form="share", got=lambda f: _worst(f["servers"], "good_per_s") / f["capacity"],
    ),
    Goal(
        row="overload", text="of the calls let in, answered in time", limit=0.99, at_least=True, form="share",
        got=lambda f: _worst(f["servers"], "admitted_in_time"),
    ),
    Goal(
        row="overload", text="of the images run, useful", limit=0.97, at_least=True, form="share",
        got=lambda f: _worst(f["servers"], "useful"),
    ),
    Goal(
        row="drain", text="calls begun within the drain window that failed", limit=0, at_least=False, form="count",
        got=lambda f: sum(of["failed"] for of in _own(f["servers"])),
    ),
    Goal(
        row="drain", text="images lost by our client through a rolling restart", limit=0, at_least=False, form="count",
        got=lambda f: f["rolling"]["lost"],
    ),
    Goal(
        row="streamed", text="processor time of an image over the bare engine's, EfficientNet-Lite0", limit=1.2,
        at_least=False, form="times", got=lambda f: f[LITE0]["ratio"]["median"],
    ),
    Goal(
        row="streamed", text="the same, VGG-16-BN", limit=1.05, at_least=False, form="times",
        got=lambda f: f[VGG]["ratio"]["median"],
    ),
    Goal(
        row="plain", text="images/s over those of a plain asyncio servicer", limit=1.0, at_least=True, form="times",
        got=lambda f: f["ratios"]["plain asyncio servicer"]["median"],
    ),
    Goal(
        row="plain", text="the same at overload, answered in time, over the better of two", limit=2.0, at_least=True,
        form="times", got=_over_plain,
    ),
    Goal(
        row="plain", text="images/s over those of eager torch in one", limit=5.0, at_least=True, form="times",
        got=lambda f: f["ratios"]["plain, eager torch"]["median"],
    ),
    Goal(
        row="tritonclient", text="images/s over Triton's", limit=1.0, at_least=True, form="times",
        got=lambda f: _lowest(f, "ratios", "Triton"),
    ),
    Goal(
        row="tritonclient", text="images/s over MLServer's", limit=3.0, at_least=True, form="times",
        got=lambda f: _lowest(f, "ratios", "MLServer"),
    ),
    Goal(
        row="dicom", text="images/s of what decoding and encoding allow on these cores", limit=0.9, at_least=True,
        form="share", got=lambda f: _lowest(f, "of_bound"),
    ),
    Goal(
        row="latency", text="one caller's p50 over Triton's", limit=1.3, at_least=False, form="times",
        got=lambda f: f["ratio"]["median"],
    ),
    Goal(
        row="replace", text="calls that failed while the artifact was replaced", limit=0, at_least=False, form="count",
        got=lambda f: f["servers"]["ours"]["failed"],
    ),
    Goal(
        row="replace", text="p99 meanwhile, over before", limit=2.0, at_least=False, form="times",
        got=lambda f: f["servers"]["ours"]["ratio"]["median"],
    ),
    Goal(
        row="start", text="from start to SERVING", limit=5.0, at_least=False, form="seconds",
        got=lambda f: f["servers"]["ours"]["start_s"]["median"],
    ),
    Goal(
        row="start", text="starts in which torch was loaded", limit=0, at_least=False, form="count",
        got=lambda f: f["servers"]["ours"]["torch"]["high"],
    ),
)  # fmt: skip
