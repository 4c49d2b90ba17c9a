# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.bench as a task: what it measures, keeps, compares, refuses and fails for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree as ET

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.action.bench import concurrencies, too_long, wrong_arguments
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import server as bench_server
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.report import load_runs

REPO = Path(__file__).parents[4]
SPEC: dict[str, Any] = {
    "name": "zero",
    "repo": "a/zero",
    "served_name": bench_server.MODEL,
    "mods": [],
    "serve": {"max-num-seqs": 2},
    "expected": {
        "sweep": [{"concurrency": 4, "decode_tokens_per_s": 80, "ttft_s": 0.1, "source": "[T]"}],
        "shape": {"input_tokens": 400, "output_tokens": 12},
        "decode_ceiling_tokens_per_s": {"value": 64, "source": "calculated for this test"},
    },
}
NODE = {"os": {"arch": "x", "kernel": "6.1"}, "gpu": {"driver": "580"}, "memory_gib": {"total": 119.2}}


class Server:
    """A server without work, as a process."""

    def __init__(self, ttft_s: float, gap_s: float, slots: int = 2) -> None:
        self.process = subprocess.Popen(
            [sys.executable, bench_server.__file__, "--ttft", str(ttft_s), "--gap", str(gap_s), "--slots", str(slots)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{json.loads(self.process.stdout.readline())['port']}"

    def stop(self) -> None:
        self.process.communicate(timeout=300)


@pytest.fixture
def quick() -> Iterator[Server]:
    server = Server(0.2, 0.02)
    yield server
    server.stop()


@pytest.fixture
def slow() -> Iterator[Server]:
    server = Server(0.2, 0.06)
    yield server
    server.stop()


def play(folder: Path, url: str, *words: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run the task with these arguments, its results below `folder`."""
    given = {
        "spec": SPEC, "url": url, "concurrency": [1, 4], "input_tokens": 400, "output_tokens": 12, "slots": 2,
        "client_overhead": False, "results_dir": str(folder / "results"), "nodes": {"n1": NODE}, "image": "sha256:1",
        **arguments,
    }  # fmt: skip
    tasks = [{"name": "Measure", "gb10.cluster.bench": given, "register": "out"}]
    tasks.append({"name": "Show", "ansible.builtin.debug": {"var": "out"}})
    path = folder / "play.yml"
    path.write_text(
        yaml.safe_dump([{"name": "p", "hosts": "localhost", "gather_facts": False, "tasks": tasks}]), encoding="utf-8"
    )
    (folder / "hosts").write_text("localhost ansible_connection=local\n", encoding="utf-8")
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "hosts"), str(path), *words]
    env = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, check=False, timeout=600)


def results(folder: Path) -> list[dict[str, Any]]:
    runs, problems = load_runs(folder / "results" / "zero")
    assert problems == []
    return runs


class Page(HTMLParser):
    """Collects what a page would fetch, and its words."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "embed"):
            self.fetched.append(tag)
        self.fetched += [f"{tag} {name}" for name, _value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_run_is_kept_reported_compared_and_can_fail(tmp_path: Path, quick: Server, slow: Server) -> None:
    done = play(
        tmp_path, quick.url, client_overhead=True, needles=[{"tokens": 900, "depth": 0.5}], needle_output_tokens=5
    )
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert "N=4: 4 of 4 answered" in done.stdout
    assert "2 waited for a slot" in done.stdout
    (first,) = results(tmp_path)
    assert [point["concurrency"] for point in first["sweep"]["points"]] == [1, 4]
    assert [row["concurrency"] for row in first["client"]["overhead"]] == [1, 4]
    assert first["needles"][0]["verdict"] == "absent"
    assert first["fingerprint"]["image"] == "sha256:1"
    assert first["fingerprint"]["driver"] == ["580"]
    assert first["regressions"] == []

    page = Page()
    base = tmp_path / "results" / "zero" / first["run"]
    html = base.with_suffix(".html").read_text(encoding="utf-8")
    page.feed(html)
    assert page.fetched == []
    assert "url(" not in html
    assert "@import" not in html
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(plots) == 5 + 2  # five charts, and the bars of each concurrency
    for plot in plots:
        ET.fromstring(plot)
    assert "ceiling of one sequence: 64" in page.words
    assert "calculated for this test" in page.words
    assert "adds a median of at most" in page.words
    markdown = base.with_suffix(".md").read_text(encoding="utf-8")
    assert "| 4 | 4/4 | 0 |" in markdown
    assert "With the published figures:" in markdown
    assert "| 4 | decode_tokens_per_s | 80 |" in markdown

    secret = "bench-canary-7341"
    again = play(tmp_path, slow.url, "-vvvv", baseline="last", regression_share=0.3, api_key=secret)
    assert again.returncode == 0, again.stdout  # nobody asked for more than to be told
    assert secret not in again.stdout + again.stderr
    written = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert len(written) >= 6
    assert not [path for path in written if secret.encode() in path.read_bytes()], "a report is passed on"
    second = results(tmp_path)[-1]
    assert second["fingerprint"]["digest"] == first["fingerprint"]["digest"]
    assert second["comparisons"][1]["with"] == f"run {first['run']}"
    assert second["comparisons"][1]["changed"] == []
    assert any("decode_tokens_per_s is 1" in sentence for sentence in second["regressions"])

    worse = play(
        tmp_path, slow.url, baseline=first["run"], regression_share=0.3, fail_on_regression=True, image="sha256:2"
    )
    assert worse.returncode != 0
    assert "At 1 requests decode_tokens_per_s is 1" in worse.stdout
    assert "worse than" in worse.stdout
    third = results(tmp_path)[-1]
    assert 'image: "sha256:1" -> "sha256:2"' in third["comparisons"][1]["changed"]
    told = (tmp_path / "results" / "zero" / f"{third['run']}.html").read_text(encoding="utf-8")
    assert "Over time" in told
    assert third["fingerprint"]["digest"] in told


CANARY = "bench-canary-7341"


class Talkative(BaseHTTPRequestHandler):
    """A server that repeats the key wherever it can, and looks at every command line meanwhile."""

    seen: ClassVar[list[str]] = []
    shown: ClassVar[list[str]] = []

    def answer(self, status: int, text: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        given = self.headers.get("Authorization", "")
        self.seen.append(f"{self.path} {given}")
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                self.shown.extend(text for text in [path.read_text(errors="replace")] if CANARY in text)
        if self.path == "/v1/models":
            self.answer(200, json.dumps({"data": [{"id": bench_server.MODEL, "max_model_len": 9000}]}))
        elif self.path == "/tokenize":
            self.answer(200, json.dumps({"count": sum(len(each["content"]) for each in json.loads(body)["messages"])}))
        elif self.path == "/version":
            self.answer(200, json.dumps({"version": f"1 for {given}"}))
        elif len(self.seen) % 2:
            self.answer(403, json.dumps({"error": {"message": f"Incorrect API key provided: {given}"}}))
        else:
            event = {"error": {"message": f"no such key: {given}", "code": 400}}
            self.answer(200, f"data: {json.dumps(event)}\n\n", "text/event-stream")

    def do_GET(self) -> None:
        self.handle_any()

    def do_POST(self) -> None:
        self.handle_any()

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


@pytest.fixture
def talkative() -> Iterator[str]:
    Talkative.seen.clear()
    Talkative.shown.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Talkative)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_key_that_the_server_repeats_is_in_no_report_no_output_and_on_no_command_line(
    tmp_path: Path, talkative: str
) -> None:
    done = play(
        tmp_path, talkative, "-vvvv", api_key=CANARY, gates=["answers"], gate_output_tokens=4, concurrency=[2],
        command=["serve", "--api-key", CANARY], profile="llama-benchy", pp=[30], tg=[6], depth=[0], latency_mode="none",
        needles=[{"tokens": 900, "depth": 0.5}], needle_output_tokens=5, export=["md", "csv", "json"],
    )  # fmt: skip
    assert {"/v1/models", "/version", "/tokenize", "/v1/chat/completions"} <= {
        line.split()[0] for line in Talkative.seen
    }
    assert all(line.endswith(f" Bearer {CANARY}") for line in Talkative.seen)
    written = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "results").rglob("*.*")}
    report = {path.suffix: text for path, text in written.items() if path.parent.name == "zero"}
    assert set(report) == {".json", ".html", ".md"}
    # What the server said is there, without the key.
    assert [suffix for suffix, text in report.items() if "key provided: Bearer ***" not in text] == []
    assert json.loads(report[".json"])["fingerprint"]["command"] == ["serve", "--api-key", "***"]
    assert "no such key: Bearer ***" in done.stdout
    assert [path for path, text in written.items() if CANARY in text] == []
    refused = play(tmp_path, f"{talkative}/elsewhere", "-vvvv", api_key=CANARY)
    assert "key: Bearer ***" in refused.stdout.replace("key provided", "key")
    assert CANARY not in done.stdout + done.stderr + refused.stdout + refused.stderr
    assert Talkative.shown == []


def test_check_mode_looks_and_measures_nothing(tmp_path: Path, quick: Server) -> None:
    done = play(tmp_path, quick.url, "--check")
    assert done.returncode == 0, done.stdout
    assert "nothing is measured in check mode" in " ".join(done.stdout.split())
    assert not (tmp_path / "results").exists()


def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path: Path, quick: Server) -> None:
    other = play(tmp_path, quick.url, spec={**SPEC, "served_name": "lab/other"})
    assert "serves bench/zero-work, not lab/other: measure what is served with -e model=" in " ".join(
        other.stdout.split()
    )
    silent = play(tmp_path, "http://127.0.0.1:9")
    assert "http://127.0.0.1:9/v1/models does not answer" in silent.stdout
    unknown = play(tmp_path, quick.url, baseline="2024", concurrency=[1])
    assert unknown.returncode != 0
    assert "No earlier run is named '2024'" in unknown.stdout
    assert len(results(tmp_path)) == 1  # what was measured is kept nevertheless
    short = play(tmp_path, quick.url, input_tokens=40, concurrency=[1])
    assert "The sweep could not be measured: A prompt of 40 tokens cannot be made" in " ".join(short.stdout.split())


ARGUMENTS: dict[str, Any] = {
    "rounds": 1, "input_tokens": 10, "output_tokens": 2, "needle_output_tokens": 1, "trace_concurrency": 1,
    "trace_block_tokens": 512, "stall_seconds": 1.0, "trace_speed": 1.0, "needles": [], "trace": "", "sweep": True,
    "runs": 1, "profile": "", "api": "chat", "spec": {}, "pp": [], "tg": [], "depth": [], "concurrency": [],
    "gate_needle_depths": [0.5], "gate_needle_tokens": 1, "gate_output_tokens": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "counts", "words"),
    [
        ({}, [0], "Concurrency 0 is not possible"),
        ({}, [2, 2], "Concurrency 2 is named twice"),
        ({"rounds": 0}, [1], "rounds is 0; it must be 1 or more"),
        ({"output_tokens": 1}, [1], "output_tokens is 1; it must be 2 or more"),
        ({"stall_seconds": 0.0}, [1], "stall_seconds is 0; it must be above 0"),
        ({"trace_speed": -1.0}, [1], "trace_speed is -1; it must be above 0"),
        ({"needles": [{"tokens": 5, "depth": 2.0}]}, [1], "A needle's depth is between 0"),
        ({"gate_needle_depths": [-0.5]}, [1], "A needle's depth is between 0"),
        ({"runs": 0}, [1], "runs is 0; it must be 1 or more"),
        ({"tg": [128, 1]}, [1], "tg has 1; it must be 2 or more"),
        ({"depth": [-1]}, [1], "depth has -1; it must be 0 or more"),
        ({"profile": "llama-benchy", "api": "completions"}, [1], "set bench_api to chat"),
        ({"profile": "llama-benchy", "spec": {"serve": {"runner": "pooling"}}}, [1], "a pooling model has none of"),
        ({"trace": "/nonexistent/t"}, [1], "The trace /nonexistent/t is no file"),
    ],
)
def test_arguments_that_cannot_be(change: dict[str, Any], counts: list[int], words: str) -> None:
    (sentence,) = wrong_arguments({**ARGUMENTS, **change}, counts)
    assert words in sentence
    assert wrong_arguments(ARGUMENTS, [1, 2]) == []


def test_more_than_the_model_serves_is_refused_with_what_fits() -> None:
    args = {
        **ARGUMENTS,
        "input_tokens": 10006,
        "output_tokens": 1024,
        "needles": [{"tokens": 4000, "depth": 0.5}],
        "needle_output_tokens": 200,
    }
    sweep, needle = too_long(args, 4096)
    assert "10006 tokens in and 1024 out are more than the 4096" in sweep
    assert "set bench_input_tokens to 3072 or less" in sweep
    assert "A needle in 4000 tokens and 200 for the answer are more than the 4096" in needle
    assert too_long(args, None) == []
    assert too_long({**args, "sweep": False, "needles": []}, 4096) == []


def test_points_beyond_the_context_are_left_out_of_a_profile_and_refused_where_they_are_asked_for() -> None:
    args = {**ARGUMENTS, "sweep": False, "profile": "llama-benchy"}
    assert too_long(args, 4096) == []  # depth 0 has room
    (none,) = too_long(args, 2000)
    assert none.endswith("The smallest takes 2176 tokens.")
    (asked,) = too_long({**args, "depth": [0, 8192]}, 4096)
    assert "Left out, because the model serves 4096 tokens (max_model_len): the points at depth 8192." in asked


def test_points_and_gates_are_kept_exported_and_can_fail(tmp_path: Path, quick: Server) -> None:
    asked: dict[str, Any] = {
        "sweep": False, "profile": "llama-benchy", "pp": [300], "tg": [6], "depth": [0, 400], "concurrency": [1],
        "runs": 2, "latency_mode": "none", "gates": ["needle", "answers", "tool_call", "reasoning"],
        "gate_needle_tokens": 900, "gate_needle_depths": [0.5], "gate_output_tokens": 4,
    }  # fmt: skip
    done = play(tmp_path, quick.url, **asked)
    assert done.returncode == 0, done.stdout
    (kept,) = results(tmp_path)
    assert {each["gate"]: each["status"] for each in kept["gates"]} == {
        "needle": "failed", "answers": "failed", "tool_call": "skipped", "reasoning": "skipped",
    }  # fmt: skip
    assert "The quality gate answers failed: 0 of 12 answers are right, 75% must be." in done.stdout
    base = tmp_path / "results" / "zero"
    page = Page()
    page.feed((base / f"{kept['run']}.html").read_text(encoding="utf-8"))
    words = (base / f"{kept['run']}.md").read_text(encoding="utf-8")
    for text in (page.words, words):
        assert "The quality gate answers failed" in text
        assert "pp300 @ d400" in text
        assert "2 repeats are too few" in text
        assert "the model file names no tool-call-parser" in text
    table = (base / "export" / f"{kept['run']}.md").read_text(encoding="utf-8")
    assert [cell.strip() for cell in table.splitlines()[0].split("|")[1:4]] == ["model", "test", "t/s"]
    assert "a/zero" in table
    assert sorted(path.suffix for path in (base / "export").iterdir()) == [".csv", ".json", ".md"]

    failed = play(tmp_path, quick.url, **{**asked, "profile": "", "gates": ["answers"], "fail_on_gate": True})
    assert failed.returncode != 0
    assert "The quality gate answers failed" in failed.stdout


@pytest.mark.parametrize(
    ("asked", "expected", "slots", "counts"),
    [
        ([3, 5], {"sweep": [{"concurrency": 1}]}, 6, [3, 5]),
        ([], {"sweep": [{"concurrency": 1}, {"concurrency": 16}]}, 6, [1, 16]),
        ([], {}, 6, [1, 2, 4, 6, 8]),
        ([], {}, 16, [1, 2, 4, 8, 16, 18]),
        ([], {}, 1, [1, 3]),
        ([], {}, 0, [1, 2, 4, 8, 10]),
    ],
)
def test_numbers_of_requests(asked: list[int], expected: dict[str, Any], slots: int, counts: list[int]) -> None:
    assert concurrencies(asked, expected, slots) == counts


def test_files_that_hold_no_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    (tmp_path / "b.json").write_text('{"format": 99}', encoding="utf-8")
    (tmp_path / "c.json").write_text('{"format": 1}', encoding="utf-8")
    runs, problems = load_runs(tmp_path)

    assert runs == []
    assert [problem.split(" ", 1)[0] for problem in problems] == [
        str(tmp_path / name) for name in ("a.json", "b.json", "c.json")
    ]
    assert "has format 99, not 1" in problems[1]
    assert load_runs(tmp_path / "none") == ([], [])
