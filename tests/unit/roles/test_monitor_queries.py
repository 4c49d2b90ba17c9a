# SPDX-License-Identifier: Apache-2.0
"""What the dashboards, the page and the alerts ask for is what the real exporters tell.

The witness for vLLM is text captured from it; for the collector, what it writes; for node exporter, its names here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, StrictUndefined

from ansible_collections.gb10.cluster.plugins.module_utils._monitor import collect as collector
from lab.standin.vllm.metrics import Metrics

REPO = Path(__file__).resolve().parents[3]
ROLE = REPO / "roles" / "monitor"
CAPTURED = REPO / "tests" / "unit" / "fixtures" / "monitor" / "vllm-0.32.0-metrics.txt"
DASHBOARDS = sorted((ROLE / "files" / "grafana").glob("*.json"))
PAGE = (ROLE / "files" / "index.html").read_text(encoding="utf-8")
#: Names of node exporter 1.5 to 1.7 that are asked for, by the collectors that the role enables.
NODE_EXPORTER = {
    "node_cpu_seconds_total",
    "node_disk_written_bytes_total",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemTotal_bytes",
    "node_time_seconds",
    "node_vmstat_pswpin",
    "node_vmstat_pswpout",
}
OWN = {"up", "ALERTS"}
NAME = re.compile(r"(?<![\w:\"$.{])((?:vllm:|gb10_|node_)\w+|up|ALERTS)(?=[{\[\s)]|$)")


def rules() -> list[dict[str, Any]]:
    """Return the alerts, rendered with the role's defaults."""
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    environment = Environment(undefined=StrictUndefined, autoescape=False)
    text = environment.from_string((ROLE / "templates" / "rules.yml.j2").read_text(encoding="utf-8")).render(defaults)
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def dashboard_queries(path: Path) -> list[str]:
    """Return every expression of a dashboard."""
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def page_queries() -> list[str]:
    """Return every expression of the page, with its helper for quantiles written out."""
    found = [
        text.replace('\\"', '"')
        for text in re.findall(r'"((?:[^"\\\n]|\\.)*(?:vllm:|gb10_|node_|\bup\{)(?:[^"\\\n]|\\.)*)"', PAGE)
    ]
    return [text + "_bucket" if re.fullmatch(r"vllm:\w+_seconds", text) else text for text in found]


def names(text: str) -> set[str]:
    """Return the series that an expression asks for."""
    return set(NAME.findall(text))


ASKED: list[tuple[str, str]] = [
    *((path.name, query) for path in DASHBOARDS for query in dashboard_queries(path)),
    *(("index.html", query) for query in page_queries()),
    *((rule["alert"], rule["expr"]) for rule in rules()),
]


def told_by(text: str) -> set[str]:
    """Return the names of all samples in a text of Prometheus' form."""
    return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}


def test_there_are_queries() -> None:
    asked = {where for where, _query in ASKED}
    assert {path.name for path in DASHBOARDS} == {"gb10-cluster.json", "gb10-engine.json"}
    assert {"index.html", *(path.name for path in DASHBOARDS)} <= asked
    assert sum(1 for where, _query in ASKED if where == "index.html") >= 25


@pytest.mark.parametrize(("where", "query"), ASKED)
def test_every_series_that_is_asked_for_exists(where: str, query: str) -> None:
    found = names(query)
    assert found, f"{where} asks for nothing that is known: {query}"
    known = told_by(CAPTURED.read_text(encoding="utf-8")) | set(collector.HELP) | NODE_EXPORTER | OWN
    assert found <= known, f"{where} asks for {found - known}"


def test_the_stand_in_tells_every_series_that_is_asked_for_as_vllm_does() -> None:
    metrics = Metrics()
    with metrics.request(3) as request:
        request.token()
    stand_in = metrics.text("lab/tiny-qwen3")
    asked = {name for _where, query in ASKED for name in names(query) if name.startswith("vllm:")}
    assert asked <= told_by(stand_in)
    buckets = re.compile(r'^(vllm:\w+_bucket)\{.*le="([^"]+)"', re.MULTILINE)
    captured = buckets.findall(CAPTURED.read_text(encoding="utf-8"))
    for name in {name for name, _le in buckets.findall(stand_in)}:
        played = [float(le) for each, le in buckets.findall(stand_in) if each == name]
        real = [float(le) for each, le in captured if each == name]
        assert played == real, f"{name} of the stand-in has other buckets than vLLM's"


def test_no_dashboard_panel_overlaps_another() -> None:
    for path in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, (path.name, panel["title"])
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, (path.name, panel["title"])
            taken |= cells


def test_the_page_loads_nothing_from_elsewhere() -> None:
    foreign = [
        url for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", PAGE) if "www.w3.org/2000/svg" not in url
    ]
    assert not foreign
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=\"(?!data:)", PAGE)
    assert "innerHTML" not in PAGE, "labels come from elsewhere: they are set as text"


def test_every_alert_says_what_and_what_to_do() -> None:
    wanted = {
        "MemoryFloor", "DiskLow", "NodeSilent", "FabricLinkDown", "FiguresOld",
        "EngineDegraded", "EngineWedged", "EngineDead", "EngineSilent",
    }  # fmt: skip
    found = {rule["alert"]: rule for rule in rules()}
    assert set(found) == wanted
    tests = yaml.safe_load((REPO / "molecule" / "monitor" / "files" / "rules_test.yml").read_text(encoding="utf-8"))
    tested = {
        case["alertname"]
        for test in tests["tests"]
        for case in test.get("alert_rule_test", [])
        if case.get("exp_alerts")
    }
    for name, rule in found.items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"]["summary"].endswith("."), name
        assert rule["annotations"]["action"], name
        assert name in tested, f"no test of molecule/monitor/files/rules_test.yml raises {name}"
