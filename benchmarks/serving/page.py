"""The measured part of docs/serving.md: the goals, and behind each row what everybody came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import pages
from benchmarks.serving.goals import GOALS, Goal, said
from benchmarks.serving.rows import ROWS, Row

PAGE = pages.DOCS / "serving.md"
ABSENT = "–"

Found = dict[str, Any]


def write(report: Found) -> None:
    """Put what was measured between the marks of the page."""
    pages.fill(PAGE, measured(report))


def measured(report: Found) -> str:
    sections = [_section(row, report["rows"][row.name]) for row in ROWS if row.name in report["rows"]]
    return "\n\n".join([_head(report), table(report), *sections])


def table(report: Found) -> str:
    """A line a goal."""
    lines = ["| measure | goal | got | met |", "|---|---|---|---|"]
    for goal in GOALS:
        found = value(goal, report)
        got, met = (ABSENT, "not measured") if found is None else (said(found, goal.form), _yes(goal.met(found)))
        lines.append(f"| {goal.text} | {goal.asked()} | {got} | {met} |")
    return "\n".join(lines)


def missed(report: Found, row: str) -> bool:
    """Whether a goal of the row is missed."""
    values = [(goal, value(goal, report)) for goal in GOALS if goal.row == row]
    return any(found is not None and not goal.met(found) for goal, found in values)


def value(goal: Goal, report: Found) -> float | None:
    """What a goal's row came to."""
    entry = report["rows"].get(goal.row)
    return None if entry is None else goal.value(entry["found"])


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _head(report: Found) -> str:
    entries = list(report["rows"].values())
    on, basis = entries[-1]["machine"], entries[-1]["basis"]
    loads = [entry["machine"]["load"] for entry in entries]
    dates = sorted({entry["machine"]["date"][:10] for entry in entries})
    commits = sorted({str(entry["machine"]["commit"]) for entry in entries})
    servers, load = basis["cores"]
    versions = ", ".join(f"{name} {v}" for name, v in {**basis["peers"], **on["versions"]}.items())
    sentences = [
        f"{on['cpu']}, {on['cores']} cores: servers on {len(servers)}, the load on {len(load)}"
        + (", the same one" if servers == load else "")
        + f"; load average {min(loads)} to {max(loads)} at the start of a row; {', '.join(dates)}.",
        f"Commit {', '.join(commits)}; Python {on['python']}, {versions}.",
        f"All rows together took {sum(entry['took_s'] for entry in entries) / 60:.0f} minutes.",
    ]
    if any(entry["basis"]["quick"] for entry in entries):
        sentences.append("**Rows were measured with --quick: they show that it runs, and nothing else.**")
    missing = sorted({sentence for entry in entries for sentence in entry["found"].get("missing", [])})
    return "\n".join(sentences + [f"Missing: {sentence}." for sentence in missing])


def _section(row: Row, entry: Found) -> str:
    return "\n\n".join([f"### {_upper(row.title)}", *DETAILS[row.name](entry["found"])])


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _overload(found: Found) -> Iterator[str]:
    yield (
        f"{found['offered']:.0f} calls a second where {found['capacity']:.0f} can be answered; "
        f"{1e3 * found['deadline_s']:.0f} ms each."
    )
    yield _goodput(found["servers"])


def _goodput(servers: Found) -> str:
    lines = ["| server | answered in time, a second | of capacity | of those let in | useful | how calls ended |"]
    lines.append("|---" * 6 + "|")
    for name, of in servers.items():
        codes: dict[str, int] = {}
        for each in of["rounds"]:
            for code, count in each["codes"].items():
                codes[code] = codes.get(code, 0) + count
        ended = ", ".join(f"{code} {count}" for code, count in codes.items())
        shares = f"{of['of_capacity']:.0%} | {_share(of['admitted_in_time'])} | {_share(of['useful'])}"
        lines.append(f"| {name} | {_spread(of['good_per_s'], '.0f')} | {shares} | {ended} |")
    late_ms = 1e3 * max(of["client_late_s"] for of in servers.values())
    lines += ["", f"The load sent no call later than {late_ms:,.0f} ms after it was due."]
    if behind := [name for name, of in servers.items() if not of["kept_up"]]:
        lines[-1] += f" **It did not keep up for {', '.join(behind)}: the machine was busy, and there is no verdict.**"
    return "\n".join(lines)


def _drain(found: Found) -> Iterator[str]:
    lines = [
        f"| server | calls begun in the {found['window_s']:.1f} s after SIGTERM | failed | open at SIGTERM, failed |"
    ]
    lines.append("|---|---|---|---|")
    for name, of in found["servers"].items():
        codes = {code: count for each in of["codes"] for code, count in each.items()}
        how = f" ({', '.join(codes)})" if codes else ""
        lines.append(f"| {name} | {of['sent']} | {of['failed']}{how} | {of['open_failed']} |")
    yield "\n".join(lines)
    rolling = found["rolling"]
    yield (
        f"Two servers of ours, each restarted while our client streamed: {rolling['answered']} images answered, "
        f"{rolling['lost']} lost, {len(rolling['failed'])} failed, {rolling['sent_twice']} sent twice."
    )


def _streamed(found: Found) -> Iterator[str]:
    lines = ["| encoder | bare engine, ms | server, ms | ratio | images/s, bare | images/s, served | mean batch |"]
    lines.append("|---" * 7 + "|")
    for name, of in found.items():
        ms = [_spread(of[key], ".2f") for key in ("bare_cpu_ms", "server_cpu_ms", "ratio")]
        per_s = [_spread(of[key], ".0f") for key in ("bare_per_s", "server_per_s")]
        cells = [f"{name}, {of['weights']}", *ms, *per_s, f"{of['mean_batch']['median']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    yield "\n".join(lines)
    yield from (_stages(name, of) for name, of in found.items())


def _saturated(saturated: Found, ratios: Found) -> str:
    lines = ["| server | images/s | ours over it | processor time of the server, ms an image |", "|---|---|---|---|"]
    for name, of in saturated.items():
        ratio = _spread(ratios[name], ".2f") if name in ratios else ""
        lines.append(f"| {name} | {_spread(of['per_s'], '.0f')} | {ratio} | {_spread(of['cpu_ms'], '.2f')} |")
    return "\n".join(lines)


def _plain(found: Found) -> Iterator[str]:
    yield _saturated(found["saturated"], found["ratios"])
    yield f"At {found['offered']:.0f} calls a second, 2.5× what the plain servicer answers, 500 ms each:"
    yield _goodput(found["overloaded"])


def _tritonclient(found: Found) -> Iterator[str]:
    for name, of in found.items():
        if isinstance(of, dict) and "saturated" in of:
            yield f"With {name}:"
            yield _saturated(of["saturated"], of["ratios"])


def _dicom(found: Found) -> Iterator[str]:
    lines = ["| pixels | bound, images/s | ours | of the bound | pydicom's loop | ours over it |", "|---" * 6 + "|"]
    for name, of in found.items():
        lines.append(
            f"| {name} | {_spread(of['bound_per_s'], '.0f')} | {_spread(of['server_per_s'], '.0f')} "
            f"| {_share(of['of_bound'])} | {_spread(of['loop_per_s'], '.0f')} | {_spread(of['beside_loop'], '.2f')} |"
        )
    yield "\n".join(lines)
    for name, of in found.items():
        decode, encode, server = (f"{of[key]['median']:.2f} ms" for key in ("decode_ms", "encode_ms", "server_cpu_ms"))
        yield (
            f"{_upper(name)}: of the processor, decoding by itself takes {decode}, encoding {encode}, and the server "
            f"for both {server}: {_share(of['of_bound_cpu'])} of its processor time is what these need by themselves. "
            f"{_upper(_stages('', of))}"
        )


def _latency(found: Found) -> Iterator[str]:
    lines = ["| server | p50, ms | p99, ms |", "|---|---|---|"]
    for name, of in found["servers"].items():
        lines.append(f"| {name} | {_spread(of['p50_ms'], '.2f')} | {_spread(of['p99_ms'], '.2f')} |")
    yield "\n".join(lines)


def _replace(found: Found) -> Iterator[str]:
    lines = ["| server | calls meanwhile | failed | p99 before, ms | meanwhile, ms | ratio | takes, s |"]
    lines.append("|---" * 7 + "|")
    for name, of in found["servers"].items():
        p99 = f"{_spread(of['p99_before_ms'], '.1f')} | {_spread(of['p99_during_ms'], '.1f')}"
        rest = f"{_spread(of['ratio'], '.2f')} | {_spread(of['switch_s'], '.1f')}"
        lines.append(f"| {name} | {of['sent']} | {of['failed']} | {p99} | {rest} |")
    yield "\n".join(lines)


def _start(found: Found) -> Iterator[str]:
    lines = ["| server | start, s | of a processor, s | RSS of all processes, MB | PSS, MB |", "|---" * 5 + "|"]
    for name, of in found["servers"].items():
        memory = f"{_spread(of['rss_mb'], '.0f')} | {_spread(of['pss_mb'], '.0f')}"
        start = f"{_spread(of['start_s'], '.1f')} | {_spread(of['start_cpu_s'], '.1f')}"
        lines.append(f"| {name} | {start} | {memory} |")
    yield "\n".join(lines)


def _own(found: Found) -> Iterator[str]:
    lines = ["| what | milliseconds of a processor, without an encoder |", "|---|---|"]
    lines += [f"| {what} | {_spread(of, '.2f')} |" for what, of in found["cpu_ms"].items()]
    yield "\n".join(lines)


DETAILS: dict[str, Callable[[Found], Iterator[str]]] = {
    "overload": _overload,
    "drain": _drain,
    "streamed": _streamed,
    "plain": _plain,
    "tritonclient": _tritonclient,
    "dicom": _dicom,
    "latency": _latency,
    "replace": _replace,
    "own": _own,
    "start": _start,
}


def _stages(name: str, of: Found) -> str:
    """Where an image's time goes in the server, by its own metrics; waiting is in it."""
    stages = ", ".join(f"{stage} {ms:.2f}" for stage, ms in of["stages_ms"].items())
    return f"{name + ': ' if name else ''}milliseconds of an image by stage, waiting included: {stages}."


def _spread(of: Found, form: str) -> str:
    """The median, and the lowest and highest of the rounds."""
    median, low, high = (format(of[key], form) for key in ("median", "low", "high"))
    return median if low == high else f"{median} ({low} to {high})"


def _share(of: Found | None) -> str:
    return ABSENT if of is None else _spread(of, ".1%")
