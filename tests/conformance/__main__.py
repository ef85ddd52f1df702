"""Reads every file of the corpora in decoding workers, and compares what comes of it with the golden table.

    python -m tests.conformance             compare; exit 1 where anything differs or costs too much
    python -m tests.conformance --update    record what comes now, and say what changed

Time is that of the processor and not of the clock, so that a busy machine does not matter much. It and the memory are
printed and never recorded.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

from tests.conformance import cases, golden
from tests.conformance.answers import Answer, answer, decodes, refused
from tests.conformance.cases import Case

from deepmcat_core import codecs
from deepmcat_core.decode_pool import DecodePool
from deepmcat_core.errors import ImageError

MAX_CPU_S = 1.0
MAX_PEAK_BYTES = 512 * 2**20
ATTEMPTS = 3  # what takes too long is measured again: other processes cost a little processor time too
WORKERS = 2

GOOD = 0
BAD = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, or with --update record."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="record what comes now, and say what changed")
    options = parser.parse_args(arguments)
    folder = cases.hostile_folder()
    asked = [*cases.public(), *cases.bombs(), *(cases.hostile(folder) if folder else ())]
    recorded = golden.read()
    print(f"decoders: {', '.join(codecs.decoders())}")
    if folder is None:
        skipped = [name for name in recorded if name.startswith(cases.HOSTILE)]
        print(f"{cases.HOSTILE}/: {len(skipped)} files skipped: {cases.NO_HOSTILE}")
    with DecodePool(WORKERS) as pool:
        answers = _answers(pool, asked)
        faults = [*_faults(asked, answers), *_read_too_far(pool, asked)]
    rows = {name: found.row for name, found in answers.items()}
    if folder is None:
        rows |= {name: recorded[name] for name in skipped}
    changes = golden.differences(recorded, rows)
    if options.update:
        golden.write(golden.updated(recorded, rows))
    _report(changes, faults, answers)
    return BAD if faults or (changes and not options.update) else GOOD


def _answers(pool: DecodePool, asked: Sequence[Case]) -> dict[str, Answer]:
    """The answer for each file, printed as it comes."""
    futures = {case.name: pool.submit_call(answer, case.data) for case in asked}
    data = {case.name: case.data for case in asked}
    answers = {}
    for name, future in futures.items():
        found = _answered(future)
        for _ in range(1, ATTEMPTS):
            if MAX_CPU_S < found.cpu_s < float("inf"):
                again = _answered(pool.submit_call(answer, data[name]))
                found = replace(found, cpu_s=min(found.cpu_s, again.cpu_s))
        answers[name] = found
        result = found.row["reason"] or found.row["status"]
        print(f"{1000 * found.cpu_s:7.1f} ms {found.peak_bytes / 2**20:6.0f} MiB  {result:<17} {name}")
    return answers


def _answered(future: Future[Answer]) -> Answer:
    """What the worker says; where it cannot, a row that says why, and costs without end."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, ImageError):  # the pool's own, because `answer` raises none: the worker died or had to
        return Answer(row=refused(error), cpu_s=float("inf"), peak_bytes=0)
    row = dict.fromkeys(golden.COLUMNS, "") | {"status": "failed", "reason": type(error).__name__}
    return Answer(row=row, cpu_s=0.0, peak_bytes=0)


def _faults(asked: Sequence[Case], answers: Mapping[str, Answer]) -> Iterator[str]:
    """What is wrong with an answer, whatever is recorded."""
    for case in asked:
        found = answers[case.name]
        if found.row["status"] == "failed":
            yield f"{case.name}: {found.row['reason']} instead of an error of ours"
        elif found.cpu_s == float("inf"):
            yield f"{case.name}: its worker died or was ended: {found.row['message']}"
        elif found.cpu_s > MAX_CPU_S:
            yield f"{case.name}: {found.cpu_s:.2f} s of processor time; {MAX_CPU_S:g} s are allowed"
        if found.peak_bytes > MAX_PEAK_BYTES:
            yield f"{case.name}: {found.peak_bytes} bytes of memory; {MAX_PEAK_BYTES} are allowed"
        if not as_expected(case.expect, found.row):
            yield f"{case.name}: {found.row['reason'] or found.row['status']}; {case.expect} is expected"


def _read_too_far(pool: DecodePool, asked: Sequence[Case]) -> Iterator[str]:
    for case in asked:
        if case.unread and pool.submit_call(decodes, case.data).result():
            yield f"{case.name}: decoded before it was refused"


def as_expected(expect: str, row: Mapping[str, str]) -> bool:
    """Whether an answer is one that the hostile set's manifest expects: its words, or reasons with | between them."""
    match expect:
        case cases.ANY:
            return row["status"] != "failed"
        case "image":
            return row["status"] == "image"
        case "any_error" | "not_an_image_or_error":
            return row["status"] in ("not an image", "refused")
        case reasons:
            return row["reason"] in reasons.split("|")


def _report(changes: Sequence[golden.Difference], faults: Sequence[str], answers: Mapping[str, Answer]) -> None:
    counts = Counter(found.row["reason"] or found.row["status"] for found in answers.values())
    slowest = max(answers, key=lambda name: answers[name].cpu_s)
    largest = max(answers, key=lambda name: answers[name].peak_bytes)
    print(f"\n{len(answers)} files: {', '.join(f'{reason} {count}' for reason, count in sorted(counts.items()))}")
    print(f"slowest: {1000 * answers[slowest].cpu_s:.0f} ms, {slowest}")
    print(f"largest: {answers[largest].peak_bytes / 2**20:.0f} MiB, {largest}")
    for kind, lines in (("not as recorded", changes), ("wrong", faults)):
        print(f"{kind}: {len(lines)}")
        for line in lines:
            print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
