"""The dashboard and the alerts fit the server: each metric that they name is in a live scrape, and promtool agrees."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from deepmcat.v1 import categorization_pb2 as pb
from deepmcat.v1 import categorization_pb2_grpc as pb_grpc
from deepmcat_client.cli import main
from deepmcat_server.tracing import Tracing

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "ops/prometheus/alerts.yaml"
DASHBOARD = json.loads((ROOT / "ops/grafana/deepmcat.json").read_text())
PROMTOOL = shutil.which("promtool")

promtool = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool here: apt install prometheus brings it")

OF_PROMETHEUS = {"up"}
OF_TLS = {"deepmcat_certificate_expiry_timestamp_seconds"}
"""What a plaintext server does not have."""

OF_FRONTS = {"deepmcat_front_restarts_total", "deepmcat_fronts", "deepmcat_fronts_wanted"}
"""What a server alone does not have."""

WORDS = {"by", "on", "and", "or", "unless", "group_left", "group_right", "ignoring", "without", "offset", "bool"}
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{[^}]*\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=120)


def selectors(expression: str) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """The metrics of an expression, with what its labels are to be: a list of alternatives each."""
    bare = re.sub(r"\b(by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)", " ", expression)
    bare = re.sub(r"\[[^\]]*\]|\boffset\s+\w+", " ", bare)
    for found in SELECTOR.finditer(bare):
        name, braces = found[1], found[2] or ""
        inside = bare.rfind("{", 0, found.start()) > bare.rfind("}", 0, found.start())
        called = bare[found.end() :].lstrip().startswith("(")
        before = bare[: found.start()]
        if inside or called or name in WORDS or before.count('"') % 2 or re.search(r"[\d.]$", before):
            continue
        yield name, {label: value.split("|") for label, how, value in MATCHER.findall(braces) if how in ("=", "=~")}


def rules() -> list[dict[str, str]]:
    """Each rule, in order."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Every expression of the rules and the dashboard by where it stands."""
    of_rules = {f"rule {rule.get('alert', rule.get('record'))}": rule["expr"] for rule in rules()}
    of_panels = {f"panel {p['title']} {t['refId']}": t["expr"] for p in panels() for t in p["targets"]}
    of_variables = {
        f"variable {v['name']}": v["query"]["query"].removeprefix("label_values(").split(",")[0]
        for v in DASHBOARD["templating"]["list"]
        if v["type"] == "query"
    }
    return of_rules | of_panels | of_variables


@pytest.fixture(name="scrape")
def scrape_fixture(start, onnx_artifact, pngs) -> str:
    """What a server says that has answered, refused and described, with real decoding workers."""
    server = start(onnx_artifact, "--set", "drain_s=0")
    with grpc.insecure_channel(server.listen) as channel:
        stub = pb_grpc.CategorizationServiceStub(channel)
        messages = [
            pb.CategorizeStreamRequest(item=pb.CategorizeRequest(image=pb.Image(encoded=content)))
            for content in (*pngs, b"no image" * 20)
        ]
        assert len(list(stub.CategorizeStream(iter(messages), timeout=60))) == 5
        assert stub.Categorize(pb.CategorizeRequest(image=pb.Image(encoded=pngs[0])), timeout=60)
        assert stub.GetArtifact(pb.GetArtifactRequest(), timeout=10)
    text = urllib.request.urlopen(f"http://{server.admin}/metrics", timeout=5).read().decode()
    assert server.stop() == 0
    return str(text)


def test_the_live_scrape_has_all_that_is_asked_for(scrape):
    """Each metric of the rules and the dashboard is the server's, and each label that they choose by is there."""
    samples = [sample for family in text_string_to_metric_families(scrape) for sample in family.samples]
    labels: dict[str, dict[str, set[str]]] = {}
    for sample in samples:
        for label, value in sample.labels.items():
            labels.setdefault(sample.name, {}).setdefault(label, set()).add(value)
        labels.setdefault(sample.name, {})
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    missing = set()
    for where, expression in expressions().items():
        asked = list(selectors(expression))
        assert asked, where
        for name, wanted in asked:
            if name in recorded | OF_PROMETHEUS | OF_TLS | OF_FRONTS:
                continue
            if name not in labels:
                missing.add((where, name))
                continue
            for label, values in wanted.items():
                if label in {"job", "instance", "grpc_service"}:
                    continue
                there = labels[name].get(label, set())
                missing |= {(where, f"{name}{{{label}={value}}}") for value in values if value not in there}

    assert missing == set()
    values = {sample.name: sample.value for sample in samples}
    assert values["deepmcat_child_processes"] >= 1  # what decoding costs is seen although other processes do it
    assert values["deepmcat_child_cpu_seconds_total"] > 0
    assert values["deepmcat_child_resident_memory_bytes"] > 2**20
    assert values["process_cpu_seconds_total"] > 0
    assert values["deepmcat_ready"] == values["deepmcat_catalog_version"] == 1


@promtool
async def test_the_scrape_is_well_formed(serving, pngs, request_of):
    """`promtool check metrics` finds nothing to say."""
    async with serving() as served:
        await served.stub.Categorize(request_of(pngs[0]))
        url = f"http://{served.running.admin}/metrics"
        scrape = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
    checked = run("check", "metrics", stdin=scrape)

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@promtool
def test_the_rules_are_rules():
    """`promtool check rules` takes them."""
    checked = run("check", "rules", str(ALERTS))

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


@promtool
@pytest.mark.slow
def test_alerts_fire_and_keep_still_as_they_should():
    """`promtool test rules`: every alert fires on what it is for, and the near miss beside it does not."""
    tested = run("test", "rules", *map(str, sorted(ALERTS.parent.glob("*_test.yaml"))))

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_test_in_which_it_fires():
    """And a place in the table for whoever is paged."""
    cases = [
        case
        for path in ALERTS.parent.glob("*_test.yaml")
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    page = (ROOT / "docs/observability.md").read_text()

    assert fired == alerts
    assert {alert for alert in alerts if f"`{alert}`" not in page} == set()


@promtool
def test_every_expression_of_the_dashboard_is_promql():
    """Prometheus' own parser takes each of them, Grafana's variables filled in."""
    lines = ["groups:", "  - name: dashboard", "    rules:"]
    for number, (where, expression) in enumerate(expressions().items()):
        if where.startswith("rule "):
            continue
        filled = expression.replace("$__rate_interval", "5m").replace("$job", "a").replace("$instance", "b")
        lines += [f"      - record: panel:{number}", f"        expr: {json.dumps(filled)}"]
    checked = run("check", "rules", "/dev/stdin", stdin="\n".join(lines))

    assert checked.returncode == 0, checked.stdout + checked.stderr


@promtool
def test_the_dashboard_counts_servers_with_every_front(tmp_path):
    """One alone, one with both fronts; none where a front is missing, and 0, not nothing, where there is no other."""
    (expression,) = (e for where, e in expressions().items() if where == "panel Servers SERVING A")
    expression = expression.replace("$job", ".*").replace("$instance", ".*")

    def counted(expected: int, *series: str) -> dict[str, Any]:
        given = [dict(zip(("series", "values"), one.rsplit(" ", 1), strict=True)) for one in series]
        asked = {"expr": expression, "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": expected}]}
        return {"input_series": given, "promql_expr_test": [asked]}

    dead = ('deepmcat_fronts{instance="b"} 0', 'deepmcat_fronts_wanted{instance="b"} 2')
    whole = ('deepmcat_ready{instance="c",front="0"} 1', 'deepmcat_ready{instance="c",front="1"} 1',
             'deepmcat_fronts{instance="c"} 2', 'deepmcat_fronts_wanted{instance="c"} 2')  # fmt: skip
    half = ('deepmcat_ready{instance="d",front="0"} 1', 'deepmcat_fronts{instance="d"} 1',
            'deepmcat_fronts_wanted{instance="d"} 2')  # fmt: skip
    alone = ('deepmcat_ready{instance="a"} 1',)
    tests = [counted(0, *dead), counted(1, *whole), counted(0, *half), counted(2, *alone, *dead, *whole, *half)]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"tests": tests}))
    tested = run("test", "rules", str(file))

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_dashboard_has_the_shape_that_grafana_exports():
    """Ids are unique, panels lie within 24 columns and beside each other, each asks the chosen data source."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        cells = itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
        for cell in cells:
            assert taken.setdefault(cell, panel["title"]) == panel["title"]
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["datasource"] == source
        assert panel["targets"], panel["title"]
        assert all(t["expr"] and t["datasource"] == source for t in panel["targets"])
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
        assert panel["description"]
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert variables["datasource"]["type"] == "datasource"
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "Traffic", "Errors", "Latency by stage", "Queue and admission", "Decoding workers", "Outliers and categories",
        "Artifacts, catalogs and credentials", "Resources",
    ]  # fmt: skip


async def test_the_access_log_tells_bytes_and_can_be_off(serving, pngs, request_of, caplog):
    """A line has the bytes of all images of its call; with access_log off there is none, and all else is logged."""
    messages = [pb.CategorizeStreamRequest(item=request_of(content)) for content in pngs]
    with caplog.at_level("INFO", "deepmcat"):
        async with serving() as served:
            assert len([r async for r in served.stub.CategorizeStream(iter(messages))]) == len(pngs)
        on = [record.fields for record in caplog.records if record.message == "call"]
        caplog.clear()
        async with serving(access_log=False) as served:
            await served.stub.Categorize(request_of(pngs[0]))
        off = [record.message for record in caplog.records]

    assert [(fields["images"], fields["size_bytes"]) for fields in on] == [(4, sum(map(len, pngs)))]
    assert off == ["draining"]


async def test_a_new_catalog_is_in_the_metrics(serving, until):
    """The version in force under a name follows what people name, and the taking is counted."""
    async with serving() as served:
        catalog = served.categorizer.artifact.catalog
        assert served.scraped["deepmcat_catalog_version artifact_name=default"] == catalog.version
        served.categorizer.artifact.append_catalog(catalog.succeed(catalog.categories))
        await until(lambda: served.scraped["deepmcat_catalog_version artifact_name=default"] == catalog.version + 1)
        await until(lambda: served.scraped["deepmcat_catalog_loads_total result=ok"] == 1)


async def test_replies_of_streams_are_timed(serving, pngs, request_of):
    """Each answer of a stream that was written counts in the stage `reply`."""
    messages = [pb.CategorizeStreamRequest(item=request_of(content)) for content in pngs]
    async with serving() as served:
        assert len([r async for r in served.stub.CategorizeStream(iter(messages))]) == len(pngs)
        assert served.scraped["deepmcat_stage_duration_seconds_count stage=reply"] == len(pngs)


async def test_a_measurement_leads_to_its_trace(serving, pngs, request_of):
    """Where Prometheus asks for OpenMetrics, times of calls have the ids of kept traces as exemplars."""
    tracing = Tracing(InMemorySpanExporter(), sample=0.0, images=1)
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with serving(tracing=tracing) as served:
        await served.stub.Categorize(request_of(pngs[0]))
        await served.stub.Categorize(request_of(pngs[0]), metadata=(("traceparent", f"00-{trace_id}-{'1' * 16}-01"),))
        url = f"http://{served.running.admin}/metrics"
        asked = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        scrape = await asyncio.to_thread(lambda: urllib.request.urlopen(asked, timeout=5).read().decode())

    exemplars = [line for line in scrape.splitlines() if " # {" in line]
    assert [trace_id in line for line in exemplars] == [True]
    assert exemplars[0].startswith("grpc_server_handling_seconds_bucket")


async def test_describe_shows_the_server_s_limits(serving, capsys):
    """`deepmcat describe --server` says what the server allows, on what it runs, and with which decoders."""
    async with serving(decode_workers=3, max_batch=8, queue_budget_s=0.5, decode_cpu_s=7) as served:
        command = ["describe", "--server", str(served.running.listen)]
        assert await asyncio.to_thread(main, command) == 0
        artifact_id = served.categorizer.artifact.artifact_id
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)

    assert "decoding 3 processes; of an image 60 s, 7 s of CPU, 2 GiB" in shown
    assert "encoding 8 frames a batch; a call waits at most 0.5 s" in shown
    assert "up to 512 MiB, 32768 rows or columns, 64 frames used" in shown
    assert "engine random-projection on cpu" in shown
    assert "imagecodecs" in shown
    assert artifact_id in shown
