# SPDX-License-Identifier: Apache-2.0
"""The sweep, the needles and the replay, whole, against servers of the loopback."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import stat
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import overhead
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import replay as replays
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import run as measure
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import BenchError, Client, Endpoint, connect
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.prompt import CONTINUE
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.server import (
    MODEL,
    TEMPLATE_TOKENS,
    Behaviour,
    ZeroWorkServer,
)

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


class Recorder(ZeroWorkServer):
    """A server that keeps its prompts, and may answer a question about a needle."""

    def __init__(self, behaviour: Behaviour, deltas: list[dict[str, str]] | None = None) -> None:
        super().__init__(behaviour)
        self.prompts: dict[str, str] = {}
        self.deltas = deltas

    async def complete(self, asked: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> None:
        prompt = asked["messages"][0]["content"]
        self.prompts[request_id] = prompt
        if self.deltas is None or not request_id.startswith("needle"):
            await super().complete(asked, request_id, writer)
            return
        found = re.search(r"lighthouse is ([A-Z]+-[A-Z]+-\d+)\.", prompt)
        code = found.group(1) if found else "nothing"
        self.begin(writer)
        for number, delta in enumerate(self.deltas, 1):
            spoken = {key: value.replace("CODE", code) for key, value in delta.items()}
            finish = "stop" if number == len(self.deltas) else None
            await self.event(writer, json.dumps({"choices": [{"delta": spoken, "finish_reason": finish}]}))
        usage = {"prompt_tokens": self.count(asked), "completion_tokens": len(self.deltas)}
        await self.event(writer, json.dumps({"choices": [], "usage": usage}))
        await self.event(writer, "[DONE]")


@asynccontextmanager
async def recording(server: Recorder, **endpoint: Any) -> AsyncIterator[Client]:
    url = f"http://127.0.0.1:{await server.start()}"
    async with connect(Endpoint(url, MODEL, stall_s=20, **endpoint)) as client:
        yield client
    await server.stop()


# --- the sweep ------------------------------------------------------------------------------------


def test_a_sweep_asks_what_it_says_and_says_what_it_found() -> None:
    server, said = Recorder(Behaviour(0.3, 0.005, slots=2)), list[str]()
    sweep = measure.Sweep([1, 2, 5], 10_000, 6, rounds=2, slots=2, seed="s")

    async def work() -> dict[str, Any]:
        async with recording(server) as client:
            return await measure.run_sweep(client, sweep, said.append)

    found = run(work())
    prompts = {key: text for key, text in server.prompts.items() if key != "warm-up"}
    assert len(prompts) == 2 * (1 + 2 + 5)
    assert {len(text) + TEMPLATE_TOKENS for text in prompts.values()} == {10_000}
    assert len({text[:24] for text in prompts.values()}) == len(prompts)  # no prefix in common
    assert [point["concurrency"] for point in found["points"]] == [1, 2, 5]
    assert [point["queued"] for point in found["points"]] == [0, 0, 6]
    assert all(point["requests"] == 2 * point["concurrency"] == point["succeeded"] for point in found["points"])
    assert all(point["warnings"] == [] for point in found["points"])
    assert found["shape"] == {
        "input_tokens": 10_000,
        "output_tokens": 6,
        "distinct_prompts": True,
        "api": "chat",
        "request": {},
    }
    assert "16 prompts of exactly 10000 tokens made" in said
    assert any(line.startswith("N=5: 10 of 10 answered in") and "6 waited for a slot" in line for line in said)


def test_one_prompt_for_all_where_that_is_asked_for() -> None:
    server = Recorder(Behaviour())

    async def work() -> None:
        async with recording(server) as client:
            await measure.run_sweep(client, measure.Sweep([2, 3], 500, 2, distinct=False), lambda _words: None)

    run(work())
    assert len({text for key, text in server.prompts.items() if key != "warm-up"}) == 1


def test_a_server_that_counts_otherwise_than_it_tokenizes_is_noticed() -> None:
    class Liar(Recorder):
        async def complete(self, asked: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> None:
            asked["messages"].append({"content": "more"})
            await super().complete(asked, request_id, writer)

    async def work() -> dict[str, Any]:
        async with recording(Liar(Behaviour())) as client:
            return await measure.run_sweep(client, measure.Sweep([1], 500, 2), lambda _words: None)

    (point,) = run(work())["points"]
    assert point["warnings"] == ["the server counted 504 input tokens where /tokenize had counted 500"]


def test_an_endpoint_that_answers_nothing_is_not_measured() -> None:
    class Dead(Recorder):
        async def complete(self, asked: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> None:
            await self._json(writer, {"error": "EngineDeadError"}, "500 Internal Server Error")

    async def work() -> None:
        async with recording(Dead(Behaviour())) as client:
            await measure.run_sweep(client, measure.Sweep([1], 500, 2), lambda _words: None)

    with pytest.raises(BenchError, match=r"first request failed, so nothing is measured: http, 500: .*EngineDeadError"):
        run(work())


def test_the_engines_figures_are_read_around_each_burst() -> None:
    class Telling(Recorder):
        looks = 0

        async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /metrics"):
                self.looks += 1
                text = (
                    f'vllm:request_queue_time_seconds_sum{{engine="0"}} {self.looks}\n'
                    f'vllm:request_queue_time_seconds_count{{engine="0"}} {self.looks * 2}\n'
                    'vllm:num_requests_running{engine="0"} 2\n'
                )
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
                return True
            again = asyncio.StreamReader(limit=2**26)
            again.feed_data(head)
            length = re.search(rb"content-length: (\d+)", head.lower())
            again.feed_data(await reader.readexactly(int(length.group(1)) if length else 0))
            return await super()._request(again, writer)

    server = Telling(Behaviour(3.0))

    async def work() -> dict[str, Any]:
        async with recording(server) as client:
            return await measure.run_sweep(client, measure.Sweep([2], 500, 2), lambda _words: None)

    (point,) = run(work())["points"]
    assert point["server"] == {"queue_mean_s": 0.5, "running_most": 2.0}
    assert server.looks >= 4


def test_progress_is_said_while_a_burst_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "HEARTBEAT_S", 0.15)
    said: list[str] = []

    async def work() -> None:
        async with recording(Recorder(Behaviour(0.1, 0.15))) as client:
            await measure.run_sweep(client, measure.Sweep([2], 500, 20), said.append)

    run(work())
    beats = [
        line
        for line in said
        if re.fullmatch(r"N=2 \(1 of 1\): 0 of 2 requests over, \d+ chunks \(\d+\.\d/s\), \d s", line)
    ]
    assert len(beats) >= 3


# --- the client's own share -----------------------------------------------------------------------


def test_the_clients_own_share() -> None:
    said: list[str] = []
    rows = run(overhead.client_overhead([1, 16], said.append))

    assert [row["concurrency"] for row in rows] == [1, 16]
    for row in rows:
        assert row["token_lag_s"]["count"] == row["concurrency"] * overhead.OVERHEAD_TOKENS
        assert -0.001 < row["token_lag_s"]["min"] <= row["token_lag_s"]["p50"] < 1
        assert 0 <= row["ttft_share_s"]["p50"] < 1
        assert row["chunks_per_s"] > 5
    assert len(said) == 2


# --- the needle -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deltas", "verdict"),
    [
        ([{"reasoning_content": "it says CODE"}, {"content": "CODE"}], "exact"),
        ([{"content": "<think>it says CODE</think>"}, {"content": "CODE"}], "exact"),
        ([{"content": "The pass phrase is CODE."}], "contained"),
        ([{"reasoning": "it says CODE"}, {"content": "I am not sure."}], "reasoning"),
        ([{"content": "I see none."}], "absent"),
    ],
)
def test_a_needle_is_found_or_not(deltas: list[dict[str, str]], verdict: str) -> None:
    async def work() -> list[dict[str, Any]]:
        async with recording(Recorder(Behaviour(), deltas)) as client:
            return await measure.run_needles(client, [(3000, 0.25), (5000, 0.9)], 100, "s", lambda _words: None)

    rows = run(work())
    assert [row["verdict"] for row in rows] == [verdict, verdict]
    assert [row["input_tokens"] for row in rows] == [3000, 5000]
    assert [row["measured_depth"] for row in rows] == pytest.approx([0.25, 0.9], abs=0.04)
    assert rows[0]["code"] != rows[1]["code"]
    told = rows[0]["reasoning"] + rows[0]["content"]
    assert (rows[0]["code"] in told) == (verdict != "absent")
    assert "think" not in told


# --- the trace ------------------------------------------------------------------------------------


def line(at_ms: int | None, tokens: int, *hashes: int) -> str:
    row: dict[str, Any] = {"input_length": tokens, "output_length": 3, "hash_ids": list(hashes)}
    return json.dumps(row if at_ms is None else {"timestamp": at_ms, **row})


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "\n".join([line(0, 2000, 1, 2, 3), line(1200, 2500, 1, 2, 4), line(600, 1500, 7, 8)]), encoding="utf-8"
    )
    return path


def replayed(server: Recorder, replay: replays.Replay, **endpoint: Any) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        async with recording(server, **endpoint) as client:
            return await replays.run_replay(client, replay, lambda _words: None)

    return run(work())


def test_a_trace_is_replayed_by_its_times(trace: Path) -> None:
    server = Recorder(Behaviour())
    found = replayed(server, replays.Replay(trace, 4, speed=0.5, aiperf="never"))

    received = {each.request_id: each.received_s for each in server.handled}
    begun = received["trace-0"]
    assert [received[f"trace-{number}"] - begun for number in range(3)] == pytest.approx([0, 1.2, 2.4], abs=0.6)
    lengths = [len(server.prompts[f"trace-{number}"]) + TEMPLATE_TOKENS for number in range(3)]
    for length, wanted in zip(lengths, [2000, 1500, 2500], strict=True):
        assert 0.98 * wanted <= length <= wanted
    first, last = server.prompts["trace-0"], server.prompts["trace-2"]
    assert first[:900] == last[:900]  # two blocks of 512 tokens in common
    assert first.endswith(CONTINUE)
    assert (found["by"], found["scheduled"], found["because"]) == ("this client", True, "bench_aiperf is never")
    assert found["figures"]["succeeded"] == 3
    assert found["figures"]["output_tokens"] == 9
    assert found["input_deviation"]["max"] <= 0.02
    assert found["shared_prefix_share"] == pytest.approx(2 / 8)


def test_a_trace_without_times_keeps_its_concurrency(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(line(None, 700, number) for number in range(6)).encode()))
    server = Recorder(Behaviour(0.05))
    found = replayed(server, replays.Replay(path, 2, limit=5, aiperf="never"))

    events = sorted(event for each in server.handled for event in ((each.received_s, 1), (each.sent_s[-1], -1)))
    under_way = [sum(change for _at, change in events[: place + 1]) for place in range(len(events))]
    assert max(under_way) == 2
    assert (found["requests"], found["scheduled"], found["concurrency"]) == (5, False, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"\xff\xfe", "cannot be read"), (b"{}", "Line 1 of the trace has input_length None")],
)
def test_what_is_no_trace_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "t"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BenchError, match=words):
        replays.read_trace(path, 0)


def test_times_that_are_not_there_cannot_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(line(None, 500, 1), encoding="utf-8")
    with pytest.raises(BenchError, match="has no timestamps"):
        replayed(Recorder(Behaviour()), replays.Replay(path, 2, scheduled=True))


FAKE = """#!{python}
import json, os, pathlib, sys
given = sys.argv[1:]
name = given[given.index("--tokenizer") + 1]
kept = pathlib.Path(os.environ["HF_HUB_CACHE"]) / ("models--" + name.replace("/", "--"))
assert (kept / "snapshots" / (kept / "refs" / "main").read_text()).is_dir(), kept
folder = pathlib.Path(given[given.index("--artifact-dir") + 1])
trace = pathlib.Path(given[given.index("--input-file") + 1])
lines = len(trace.read_text().splitlines())
if {fails}:
    sys.exit("tokenizer not found")
(folder / "run").mkdir()
export = {{"time_to_first_token": {{"unit": "ms", "avg": 5.0}}, "request_count": {{"unit": "requests", "avg": lines}}}}
(folder / "run" / "profile_export_aiperf.json").write_text(json.dumps(export))
"""


def place_aiperf(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
    folder.mkdir()
    program = folder / "aiperf"
    program.write_text(FAKE.format(python=sys.executable, fails=fails), encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_aiperf_replays_where_it_is_installed(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_aiperf(tmp_path / "bin", monkeypatch)
    found = replayed(Recorder(Behaviour()), replays.Replay(trace, 4, limit=2, tokenizer=str(tmp_path)))

    assert found["by"] == "aiperf"
    assert found["figures"] == {"requests": {"unit": "requests", "avg": 2}, "ttft": {"unit": "ms", "avg": 5.0}}


def test_an_aiperf_that_fails_is_quoted(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_aiperf(tmp_path / "bin", monkeypatch, fails=True)
    with pytest.raises(BenchError, match="AIPerf ended with 1 and 0 exports: tokenizer not found"):
        replayed(Recorder(Behaviour()), replays.Replay(trace, 4, tokenizer=str(tmp_path)))


@pytest.mark.parametrize(
    ("installed", "options", "endpoint", "words"),
    [
        (False, {}, {}, "AIPerf is not installed on the control node"),
        (True, {"tokenizer": ""}, {}, "needs the model's tokenizer"),
        (True, {"speed": 2.0}, {}, "replays a schedule at its own speed"),
        (True, {}, {"api_key": "sesame"}, "every user of this machine could read it"),
    ],
)
def test_where_aiperf_cannot_the_reason_is_kept_or_fails(
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,
    options: dict[str, Any],
    endpoint: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    if installed:
        place_aiperf(tmp_path / "bin", monkeypatch)
    given = {"tokenizer": str(tmp_path), **options}
    assert words in replayed(Recorder(Behaviour()), replays.Replay(trace, 4, **given), **endpoint)["because"]
    with pytest.raises(BenchError, match=f"bench_aiperf is require, but .*{words}"):
        replayed(Recorder(Behaviour()), replays.Replay(trace, 4, aiperf="require", **given), **endpoint)
