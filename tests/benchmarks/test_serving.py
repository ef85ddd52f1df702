"""benchmarks/serving: the plan, the arithmetic, the goals and the page, on made-up observations."""

from __future__ import annotations

import copy
import os
import sys
import time

import pytest
from benchmarks import pages
from benchmarks.serving import draining, goals, load, observations, overload, page, processes, rows
from benchmarks.serving.observations import Call
from benchmarks.serving.peers import work

LITE0, VGG = "efficientnet-lite0", "vgg16bn-sobel"
BASIS = {"peers": {"Triton": "24.10"}, "cores": [[0], [1]], "quick": False, "versions": {}}
MACHINE = {
    "cpu": "a CPU", "cores": 2, "load": 0.1, "date": "2026-01-02T03:04:05+00:00", "python": "3.11.1",
    "versions": {"deepmcat": "0.1.0"}, "commit": "abc",
}  # fmt: skip


def spread(*values: float) -> dict[str, float]:
    return observations.spread(values)._asdict()


def server(**medians: float) -> dict[str, dict[str, float]]:
    return {name: spread(value) for name, value in medians.items()}


def overloaded(good_per_s: float, **shares: float) -> dict[str, object]:
    """A server's summary after one round."""
    one = {"good_per_s": good_per_s, "codes": {"OK": 9, "RESOURCE_EXHAUSTED": 1}, "client_late_s": 0.004}
    one |= {"useful": shares.get("useful"), "admitted_in_time": shares.get("admitted_in_time")}
    return overload.summary([one], 400)


@pytest.fixture(name="report")
def report_fixture() -> dict[str, object]:
    """Every row, every goal met but that of VGG-16-BN."""
    streamed = server(bare_cpu_ms=1.5, server_cpu_ms=1.6, bare_per_s=600, server_per_s=550, mean_batch=30)
    streamed |= {"weights": "pretrained", "stages_ms": {"encode": 1.5}}
    saturated = {
        "saturated": {name: server(per_s=900, cpu_ms=1) for name in ("ours", "Triton", "MLServer")},
        "ratios": {"Triton": spread(1.1), "MLServer": spread(3.5)},
    }
    plain = "plain asyncio servicer"
    found = {
        "overload": {
            "capacity": 400, "offered": 1000, "deadline_s": 0.5, "missing": ["Ray Serve: it is not here"],
            "servers": {
                "ours": overloaded(392, useful=0.99, admitted_in_time=0.995),
                "ours, by ModelInfer": overloaded(388, useful=0.98, admitted_in_time=0.999),
                "Triton": overloaded(60, useful=0.4),
            },
        },
        "drain": {
            "window_s": 4.9,
            "servers": {
                "ours": {"sent": 900, "failed": 0, "open_failed": 0, "codes": [{}]},
                "Triton": {"sent": 900, "failed": 900, "open_failed": 3, "codes": [{"NOT_FOUND": 900}]},
            },
            "rolling": {"answered": 2000, "lost": 0, "failed": [], "sent_twice": 7},
        },
        "streamed": {LITE0: streamed | {"ratio": spread(1.1)}, VGG: streamed | {"ratio": spread(1.2)}},
        "plain": {
            "saturated": {name: server(per_s=500, cpu_ms=1) for name in ("ours", plain, "plain, eager torch")},
            "ratios": {plain: spread(1.05), "plain, eager torch": spread(6)},
            "offered": 1200,
            "overloaded": {"ours": overloaded(400), plain: overloaded(150)},
        },
        "tritonclient": {"1 image a call": saturated, "16 images a call": saturated},
        "dicom": {
            "uncompressed": server(bound_per_s=200, server_per_s=190, of_bound=0.95, loop_per_s=100, beside_loop=1.9)
            | server(decode_ms=3, encode_ms=2, server_cpu_ms=5.2, of_bound_cpu=0.96)
            | {"stages_ms": {"decode": 4}}
        },
        "latency": {
            "servers": {"ours": server(p50_ms=2.2, p99_ms=3), "Triton": server(p50_ms=2, p99_ms=3)},
            "ratio": spread(1.1),
        },
        "replace": {
            "servers": {
                "ours": {"sent": 500, "failed": 0}
                | server(p99_before_ms=10, p99_during_ms=15, ratio=1.5, switch_s=3)
            }
        },
        "own": {"cpu_ms": {"a call to ours, Categorize": spread(0.7)}},
        "start": {"servers": {"ours": server(start_s=2.5, start_cpu_s=2, rss_mb=300, pss_mb=200, torch=0)}},
    }  # fmt: skip
    return {
        "benchmark": "serving",
        "rows": {name: {"basis": BASIS, "machine": MACHINE, "took_s": 60, "found": of} for name, of in found.items()},
    }


def test_the_plan_leaves_out_what_is_done():
    """A row of the same basis is not measured again, one of another is; a name that there is not is refused."""
    report = {"rows": {"overload": {"basis": BASIS}, "drain": {"basis": BASIS | {"quick": True}}}}
    done = rows.done(report, BASIS)
    names = [row.name for row in rows.plan(None, done)]
    assert names == [row.name for row in rows.ROWS if row.name != "overload"]
    assert [row.name for row in rows.plan(["overload", "start"], done)] == ["start"]
    with pytest.raises(SystemExit, match="latencies"):
        rows.plan(["latencies"], ())


def test_every_row_has_goals_and_a_section():
    """Nothing is measured that the page does not show; a row without a goal is the one that explains the others."""
    names = {row.name for row in rows.ROWS}
    assert {goal.row for goal in goals.GOALS} == names - {"own"}
    assert page.DETAILS.keys() == names


def test_good_is_answered_within_the_deadline():
    """An answer that came late and one that was refused are not good; a call counts by when it was due."""
    calls = [Call(0.0, 0.4, "OK"), Call(0.5, 0.6, "OK"), Call(1.0, 0.001, "RESOURCE_EXHAUSTED"), Call(2.0, 0.1, "OK")]
    assert observations.good(calls, 0.5) == 2
    assert observations.good(observations.within(calls, 0.0, 2.0), 0.5) == 1
    assert observations.failed(calls) == 1
    assert observations.codes(calls) == {"OK": 3, "RESOURCE_EXHAUSTED": 1}


def test_answers_of_a_closed_loop_count_by_when_they_came():
    """A call begun before the window and answered in it counts, and one that ends after it does not."""
    calls = [Call(0.9, 0.2, "OK"), Call(1.5, 0.2, "OK"), Call(1.9, 0.2, "OK"), Call(1.5, 0.1, "UNAVAILABLE")]
    assert observations.answered_per_s(calls, 1.0, 2.0) == 2


def test_percentiles_are_of_answers():
    """The smallest that so many do not exceed; refusals, which are fast, are not in it."""
    calls = [Call(0, i / 100, "OK") for i in range(1, 101)] + [Call(0, 0.0001, "UNAVAILABLE")] * 50
    assert observations.percentile(calls, 0.5) == 0.5
    assert observations.percentile(calls, 0.99) == 0.99
    assert observations.percentile([Call(0, 1, "UNKNOWN")], 0.5) != observations.percentile(calls, 0.5)


def test_what_is_executed_is_in_the_log(tmp_path):
    """Every batch of the stand-in is counted, whole entries only, in the time that is asked for."""
    log = tmp_path / "executed"
    embed = work.opened({"seconds": 0, "dim": 4, "log": str(log)})
    planes = load.planes(3, 16, 0)
    assert embed(planes).shape == (3, 4)
    embed(planes[:2])
    with log.open("ab") as file:
        file.write(b"part")
    assert observations.executed(log) == 5
    assert observations.executed(log, begin=time.monotonic()) == 0
    assert observations.executed(tmp_path / "none") == 0


def test_admitted_is_what_was_not_refused_at_the_door():
    """A call that was let in and told later that its time is over counts as let in, and not as answered."""
    refused = 'grpc_server_handled_total{grpc_code="RESOURCE_EXHAUSTED",grpc_method="Categorize"}'
    before = {refused: 10.0, 'deepmcat_expired_total{stage="queue"}': 1.0}
    after = {refused: 70.0, 'deepmcat_expired_total{stage="queue"}': 3.0}
    assert overload.admitted(before, after, sent=158) == 100
    samples = observations.samples(f"# HELP x\n{refused} 70.0\n")
    assert observations.total(samples, "grpc_server_handled_total", 'grpc_code="RESOURCE_EXHAUSTED"') == 70
    assert observations.total(samples, "grpc_server_handled", 'grpc_code="RESOURCE_EXHAUSTED"') == 0


def test_ratios_are_of_the_same_round():
    """What slowed one round down slowed both of its contenders: its ratio is as good as any."""
    of = {
        "ours": {"rounds": [{"per_s": 100}, {"per_s": 10}]},
        "Triton": {"rounds": [{"per_s": 50}, {"per_s": 5}]},
    }
    assert observations.ratios(of)["Triton"] == {"median": 2, "low": 2, "high": 2}


def test_goals_are_met_or_missed(report):
    """At its limit a goal is met; beyond it, it is missed, and the table says so."""
    text = page.table(report)
    assert text.count("| yes |") == len(goals.GOALS) - 1
    assert "| the same, VGG-16-BN | ≤ 1.05× | 1.20× | **no** |" in text
    assert page.missed(report, "streamed")
    assert not page.missed(report, "overload")
    for goal in goals.GOALS:
        assert goal.met(goal.limit)
        assert not goal.met(goal.limit - 1e-6 if goal.at_least else goal.limit + 1e-6)


def test_the_worst_of_ours_decides(report):
    """Ours is called in two ways; a goal is met where both meet it, and peers do not count."""
    changed = copy.deepcopy(report)
    changed["rows"]["overload"]["found"]["servers"]["ours, by ModelInfer"] = overloaded(300, useful=0.5)
    changed["rows"]["overload"]["found"]["servers"]["ours, by ModelInfer"]["admitted_in_time"] = spread(0.5)
    values = {goal.text: page.value(goal, changed) for goal in goals.GOALS if goal.row == "overload"}
    assert list(values.values()) == [0.75, 0.5, 0.5]


def test_a_load_that_did_not_keep_up_gives_no_verdict(report):
    """A busy machine makes no server look bad, nor good; rounds in which it kept up are what counts."""
    late, steady = {"client_late_s": 3.0, "good_per_s": 5}, {"client_late_s": 0.01, "good_per_s": 390}
    rest = {"codes": {}, "useful": 1.0, "admitted_in_time": 1.0}
    found = overload.summary([late | rest, steady | rest], 400)
    assert found["good_per_s"] == spread(390)
    servers = report["rows"]["overload"]["found"]["servers"]
    servers["Triton"] = overload.summary([late | rest], 400)
    assert [page.value(goal, report) for goal in goals.GOALS if goal.row == "overload"] == [None] * 3
    assert "**It did not keep up for Triton" in page.measured(report)


def test_what_is_missing_is_named_and_not_met(report):
    """Without a peer its goal is not measured, and the page says what was not there."""
    changed = copy.deepcopy(report)
    for of in changed["rows"]["tritonclient"]["found"].values():
        of["ratios"] = {"MLServer": spread(4)}
    del changed["rows"]["latency"]
    text = page.measured(changed)
    assert "| images/s over Triton's | ≥ 1.00× | – | not measured |" in text
    assert "| one caller's p50 over Triton's | ≤ 1.30× | – | not measured |" in text
    assert "Missing: Ray Serve: it is not here." in text


def test_the_page_has_marks_and_a_section_a_row(report, tmp_path):
    """The measured part goes between the marks of docs/serving.md and replaces what was there."""
    copied = tmp_path / "serving.md"
    copied.write_text(page.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    assert copied.read_text().count(pages.BEGIN) == copied.read_text().count(pages.END) == 1
    for _ in range(2):
        pages.fill(copied, page.measured(report))
    text = copied.read_text(encoding="utf-8")
    assert text.count("### ") == len(rows.ROWS)
    assert "2000 images answered, 0 lost, 0 failed, 7 sent twice" in text
    assert "no call later than 4 ms" in text


def test_quick_results_say_that_they_are_no_measurement(report):
    """Somebody who finds them on the page is told."""
    report["rows"]["start"]["basis"] = BASIS | {"quick": True}
    assert "--quick" in page.measured(report)


def test_received_images_are_in_the_access_log(tmp_path):
    """Streams alone count, and lines of others are passed over."""
    log = tmp_path / "log"
    log.write_text(
        '{"event": "call", "method": "CategorizeStream", "images": 40}\n'
        "a line of another library\n"
        '{"event": "call", "method": "CategorizeStream", "images": 2}\n'
        '{"event": "call", "method": "Categorize", "images": 1}\n'
    )
    assert draining.received(log) == 42


def test_cores_are_halved():
    """Servers and load share no core where there are two."""
    found, ours = processes.cores(), os.sched_getaffinity(0)
    assert set(found.servers) | set(found.load) == ours
    assert bool(set(found.servers) & set(found.load)) == (len(ours) == 1)


def test_processor_time_of_children_counts(tmp_path):
    """What a server's children took counts for it, also when they have ended; and leaving ends all of them."""
    child = "sum(range(3_000_000))"
    program = (
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {child!r}]); print('x'); time.sleep(60)"
    )
    log = tmp_path / "log"
    with processes.Process([sys.executable, "-u", "-c", program], log=log, on=processes.cores().servers) as process:
        process.wait_until(lambda: b"x" in log.read_bytes())
        assert process.cpu_s() > 0.03
        assert 0 < process.memory().pss_bytes <= process.memory().rss_bytes
        assert process.maps("python")
        assert not process.maps("libtorch")
    assert process.ended


def test_a_server_that_does_not_start_is_not_waited_for(tmp_path):
    """Its log is in the error."""
    process = processes.Process(
        ["sh", "-c", "echo out of luck; exit 3"], log=tmp_path / "log", on=os.sched_getaffinity(0)
    )
    with pytest.raises(processes.NotStarted, match="out of luck"):
        process.wait_until(lambda: False)


async def test_a_load_keeps_its_rate_whatever_becomes_of_the_calls():
    """Calls are sent when they are due, also where nobody answers; what has no answer is in the result."""
    found = await load.run(load.Load(address="127.0.0.1:1", way="infer", rate=200, seconds=0.5, deadline_s=0.2, side=8))
    codes = {code for _, _, code in found["calls"]}
    assert 60 < len(found["calls"]) < 150
    assert "OK" not in codes
