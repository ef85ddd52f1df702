"""The measured part of docs/decoding.md: milliseconds, ratios, goals, and the profile where a goal is missed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pages

PAGE = pages.DOCS / "decoding.md"
COLUMNS = ("pillow", "pylibjpeg", "gdcm")
ABSENT = "–"

# Object (its name starts so), peer ("" for the fastest one there is), and how many times as fast ours is to be.
GOALS = (
    ("uncompressed, 512²", "", 1.5),
    ("JPEG 2000 lossless, 2048²", "", 15.0),
    ("JPEG 2000 lossy, 1:10, 2048²", "", 15.0),
    ("JPEG, 2048²", "", 5.0),
    ("JPEG in colour, 2048²", "", 5.0),
    ("JPEG, 512²", "", 5.0),
    ("JPEG in colour, 512²", "", 5.0),
    ("JPEG lossless, 2048²", "gdcm", 1.6),
    ("JPEG lossless, 2048²", "pylibjpeg", 2.5),
    ("JPEG lossless, 512²", "gdcm", 1.6),
    ("JPEG lossless, 512²", "pylibjpeg", 2.5),
    ("one frame of a JPEG cine", "all frames", 50.0),
)

Result = dict[str, Any]


def write(report: dict[str, Any]) -> None:
    """Put what was measured between the marks of the page."""
    pages.fill(PAGE, measured(report))


def measured(report: dict[str, Any]) -> str:
    on = report["machine"]
    peers = ", ".join(f"{k} {v}" for found in report["peers"].values() for k, v in found.items() if v)
    head = (
        f"{on['cpu']}, {on['cores']} cores, load {on['load']} at the start; {on['date'][:10]}, commit {on['commit']}; "
        f"Python {on['python']}, {peers}."
    )
    absent = f"Not installed, so not measured: {', '.join(report['missing'])}." if report["missing"] else ""
    parts = [head, absent, _table(report["results"]), _cine(report["results"]), _goals(report["results"])]
    parts += [_profiles(report["results"]), _prepare(report["prepare"])]
    return "\n\n".join(part for part in parts if part)


def line(result: Result, *, plain: bool = False) -> str:
    """Best of all rounds, the median in brackets, and for peers how many times as long as ours."""
    own = result["ms"]["ours"]
    cells = [result["object"], result["decoder"].partition(" ")[0] + _part(result["decoder"])]
    cells.append(f"{own['best']:.1f} ({own['median']:.1f})")
    for name in COLUMNS:
        if (peer := result["ms"].get(name)) is None:
            cells.append(ABSENT)
        else:
            ratio = peer["best"] / own["best"]
            cells.append(
                f"{peer['best']:.1f} ({peer['median']:.1f}), {'' if plain else '**'}{ratio:.1f}×{'' if plain else '**'}"
            )
    return "| " + " | ".join(cells) + " |"


def _part(decoder: str) -> str:
    at = decoder.partition(" at ")[2]
    return f" at {at}" if at else ""


def _table(results: list[Result]) -> str:
    head = "| object | decoded by | ours, ms | " + " | ".join(f"pydicom with {name}, ms" for name in COLUMNS) + " |"
    return "\n".join([head, "|---" * (3 + len(COLUMNS)) + "|", *(line(result) for result in results)])


def _cine(results: list[Result]) -> str:
    found = [
        f"{name.partition(',')[0]} {ms['best']:,.0f} ms ({ms['best'] / result['ms']['ours']['best']:.0f}×)"
        for result in results
        for name, ms in result["ms"].items()
        if name.endswith("all frames")
    ]
    return f"The same frame of the cine where `pixel_array` decodes all of them: {', '.join(found)}." if found else ""


def ratio(results: list[Result], name: str, peer: str) -> float | None:
    """Times as fast as a peer, or as the fastest of them; None where it was not measured."""
    result = next((result for result in results if result["object"].startswith(name)), None)
    if result is None:
        return None
    fitting = [ms["best"] for who, ms in result["ms"].items() if who != "ours" and _fits(who, peer)]
    return min(fitting) / result["ms"]["ours"]["best"] if fitting else None


def _fits(who: str, peer: str) -> bool:
    return who in COLUMNS if not peer else who == peer or who.endswith(f", {peer}")


def _goals(results: list[Result]) -> str:
    rows = ["| goal | beside | at least | measured |", "|---|---|---|---|"]
    for name, peer, least in GOALS:
        found = ratio(results, name, peer)
        said = "not measured" if found is None else f"{found:.1f}×" + ("" if found >= least else ", **missed**")
        rows.append(f"| {name} | {peer or 'the fastest of them'} | {least:g}× | {said} |")
    return "\n".join(rows)


def _missed(results: list[Result]) -> Iterator[Result]:
    names = [name for name, peer, least in GOALS if (found := ratio(results, name, peer)) is not None and found < least]
    return (result for result in results if any(result["object"].startswith(name) for name in names))


def _profiles(results: list[Result]) -> str:
    """Where the time goes in what missed its goal."""
    parts = []
    for result in _missed(results):
        listed = ", ".join(f"`{row['function']}` {row['ms']:.2f}" for row in result["profile"])
        parts.append(f"- {result['object']}: {listed} ms.")
    return "Where a goal is missed, the functions that take longest (profiled):\n\n" + "\n".join(parts) if parts else ""


def _prepare(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [
        "| `deepmcat prepare`, start and report included | files | seconds | files a second |",
        "|---|---|---|---|",
    ]
    for row in rows:
        workers = f"{row['workers']} worker{'s' if row['workers'] > 1 else ''}"
        what = "the corpora of pydicom" + (" and the cardiac set" if row["cardiac"] else "")
        lines.append(
            f"| {what}, {workers} | {row['files']:,} | {row['seconds']:.1f} | {row['files'] / row['seconds']:.0f} |"
        )
    return "\n".join(lines)
