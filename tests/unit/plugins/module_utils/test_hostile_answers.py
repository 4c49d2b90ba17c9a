# SPDX-License-Identifier: Apache-2.0
"""What engines, nodes, guards and runs answer: a value or the parser's own sentence, never another traceback."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ansible_collections.gb10.cluster.plugins.module_utils._engine import record as records
from ansible_collections.gb10.cluster.plugins.module_utils._engine import tether
from ansible_collections.gb10.cluster.plugins.module_utils._engine.group import HELLO, environment_difference
from ansible_collections.gb10.cluster.plugins.module_utils._engine.guard import Guard
from ansible_collections.gb10.cluster.plugins.module_utils._fabric import icmp, throughput
from ansible_collections.gb10.cluster.plugins.module_utils._node import lease
from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import MAX_NUMBER, parsed, shaped
from ansible_collections.gb10.cluster.plugins.module_utils._probe import (
    api,
    client,
    pooling,
    state,
    status,
    tool_call,
)
from ansible_collections.gb10.cluster.plugins.module_utils._probe.states import API, RANK
from ansible_collections.gb10.cluster.plugins.modules import fabric_neighbours
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stream import FAILURES, Answer, EventReader
from ansible_collections.gb10.cluster.plugins.plugin_utils._choice import model as choosing
from ansible_collections.gb10.cluster.plugins.plugin_utils._lease import processes
from tests.unit.plugins.module_utils.hostile import DEEP, JSON, bounded, near, serving

WANTED = api.Wanted("m", needle_tokens=1000, tool_call=True, reasoning=True)
EVENT = api._EVENT
ANSWERS = {
    "/v1/embeddings": {"data": [{"embedding": [0.5]}]},
    "/v1/rerank": {"results": [{"index": 0, "relevance_score": 0.5}]},
    "/classify": {"data": [{"probs": [0.5]}]},
}


def printable(value: Any) -> None:
    """A report goes to the control node as JSON."""
    json.dumps(value)


# --- the shape -----------------------------------------------------------------------------------


@bounded
@given(JSON)
def test_anything_has_the_shape_of_its_example(value: Any) -> None:
    assert shaped(value, {"a": 0, "b": [{"c": ""}], "d": float}).keys() >= {"a", "b", "d"}
    found = shaped(value, RANK)
    assert isinstance(found["unit"]["restarts"], int)
    assert all(isinstance(each["cause"], str) for each in found["findings"])
    # Text, because a number that is none (NaN) is not equal to itself.
    assert repr(shaped(found, RANK)) == repr(found)


@pytest.mark.parametrize(
    ("value", "example_", "expected"),
    [
        (3, 0, 3), (True, 0, 0), (3.0, 0, 0), (10**400, 0, 0), (MAX_NUMBER + 1, 0, 0), (float("nan"), 0.0, 0.0),
        (3, 0.0, 3), ("x", 0.0, 0.0), (1, False, False), (None, "", ""), ("x", float, None), (2, float, 2),
        ([1, "a", None], [0], [1]), ([{}, 3], [{"a": ""}], [{"a": ""}]), ({"b": 1}, {"a": ""}, {"b": 1, "a": ""}),
        ({}, ({"a": ""},), {}), (3, ({"a": ""},), {}), ({"a": 3}, ({"a": ""},), {"a": ""}), ([3], None, [3]),
        ([1, [2]], [None], [1, [2]]),
    ],
)  # fmt: skip
def test_what_is_of_another_kind_is_missing(value: Any, example_: Any, expected: Any) -> None:
    assert shaped(value, example_) == expected


@pytest.mark.parametrize("text", ["", "{", DEEP, b"\xff", "1" * 5000])
def test_what_is_no_json_is_nothing(text: str | bytes) -> None:
    assert parsed(text) is None


# --- the engine's API ----------------------------------------------------------------------------


class Hostile:
    """An engine that answers whatever it was given."""

    def __init__(self, body: str, lines: list[str]) -> None:
        self.body, self.lines = body, lines

    def get(self, _path: str, *, patient: bool = False) -> api.Reply:
        return api.Reply(200, self.body)

    def post(self, _path: str, _payload: Mapping[str, Any]) -> api.Reply:
        return api.Reply(200, self.body)

    def stream(self, _path: str, _payload: Mapping[str, Any]) -> Iterator[str]:
        yield from self.lines


@bounded
@given(near(api._MODELS) | JSON, st.lists(near(EVENT), max_size=4), st.booleans())
@example({"data": [{"id": "m"}], "count": -1}, [{"usage": {"completion_tokens": 8}, "choices": [3]}], False)
@example({"data": [{"id": "m"}], "count": 1}, [{"usage": {"completion_tokens": 8}}, {"error": 3}], False)
def test_any_answers_of_an_engine_make_a_report(listed: Any, events: list[Any], pools: bool) -> None:
    if isinstance(listed, dict) and isinstance(listed.get("data"), list):
        listed["data"].append({"id": "m"})
    hostile = Hostile(json.dumps(listed), [f"data: {json.dumps(each)}" for each in events])
    wanted = api.Wanted("m", pooling=True) if pools else WANTED
    report = api.probe_api(hostile, "http://x", wanted)
    printable(report)
    printable(
        state.merge([{"node": "a", "state": "running"}], report, head="a", expected={"served_name": "m"}).as_dict()
    )


@bounded
@given(
    st.lists(st.fixed_dictionaries({"name": st.just("count_shelf"), "arguments": st.text(max_size=20) | st.just(DEEP)}))
)
def test_any_tool_call_is_judged(calls: list[dict[str, str]]) -> None:
    assert len(tool_call.wrong_call(calls, "")) < 1000


@pytest.mark.parametrize("body", [DEEP, f'{{"data": {DEEP}', "", "null", "\x00"])
def test_a_body_without_end_is_no_answer(body: str) -> None:
    report = api.probe_api(Hostile(body, [f"data: {body}"]), "http://x", WANTED)
    assert report["models"] == []
    printable(report)


@bounded
@given(st.integers(-(2**70), 2**70) | st.just(1))
def test_no_count_of_tokens_makes_a_prompt_without_end(count: int) -> None:
    per_token = api._characters_per_token(Hostile(json.dumps({"count": count}), []), "m")
    assert 0 < len(api.needle_prompt(1000, per_token)) < 20_000


SAMPLES = st.sampled_from(sorted(api.METRICS)).flatmap(
    lambda name: st.sampled_from(["1", "NaN", "+Inf", "1e308", "-1", "1e999", "x"]).map(lambda value: f"{name} {value}")
)


@bounded
@given(st.lists(SAMPLES | st.text(max_size=60), max_size=12))
def test_any_metrics_are_finite_figures(lines: list[str]) -> None:
    figures = api.parse_metrics("\n".join(lines))
    json.dumps(figures, allow_nan=False)
    load = status.load_of(figures, figures, 2.0)
    assert all(each is None or isinstance(each, float) for each in load.values())


@bounded
@given(st.sampled_from(sorted(ANSWERS)).flatmap(lambda path: st.tuples(st.just(path), near(ANSWERS[path]))))
def test_any_answer_of_a_pooling_model_is_a_phrase_or_a_sentence(asked: tuple[str, Any]) -> None:
    path, answer = asked
    (question,) = [each for each in pooling.questions("m") if each.path == path]
    with suppress(pooling.ShapeError):
        assert pooling.read_answer(question, json.dumps(answer))
    assert pooling.prompt_tokens(json.dumps(answer)) >= 0
    with pytest.raises(pooling.ShapeError, match="no JSON"):
        pooling.read_answer(question, DEEP)


USAGE = {"prompt_tokens": 0, "completion_tokens": 0}


@bounded
@given(st.lists(near({**EVENT, "usage": USAGE}) | st.just(DEEP), max_size=4))
@example([{"usage": {"prompt_tokens": float("inf"), "completion_tokens": 1}}])
def test_any_events_of_a_measured_completion_are_an_answer_or_a_failure(events: list[Any]) -> None:
    reader, answer = EventReader(), Answer()
    for event in events:
        text = event if isinstance(event, str) else json.dumps(event)
        for data in reader.feed(f"data: {text}\n\n".encode(errors="replace")):
            answer.take(data, 1.0)
    answer.close(reader.unfinished)
    assert answer.failure in (*FAILURES, "")
    assert len(answer.detail) < 1000
    assert answer.said


HEADS = st.sampled_from(
    [
        b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 401 x\r\nContent-Length: 99\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd\r\n\r\n",
        b"HTTP/1.1 999999999999 x\r\n\r\n", b"HTTP/1.1 100 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n", b"HTTP/1.1 401 x\r\nWWW-Authenticate: x\r\n\r\n",
    ]
)  # fmt: skip
BODIES = st.binary(max_size=60) | st.sampled_from(
    [b"5\r\nab", b"zz\r\n", b"-1\r\n\r\n", b"data: {}\n\n", b"ffffffffff\r\nx"]
)


@settings(bounded, max_examples=60)
@given(HEADS, BODIES)
def test_any_bytes_from_a_port_are_a_reply(head: bytes, body: bytes) -> None:
    with serving(head + body) as port:
        asked = client.ProbeClient(f"http://127.0.0.1:{port}", short_seconds=60, silence_seconds=60)
        reply = asked.get("/health")
        assert reply.status or reply.error
        with suppress(api.ProbeHttpError):
            assert len("".join(asked.stream("/v1/completions", {}))) <= len(body)


def test_a_stream_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BODY_BYTES", 1 << 20)
    for endless in (b"x" * (3 << 20), b"data: {}\n" * 400_000):
        with serving(b"HTTP/1.1 200 OK\r\n\r\n" + endless) as port:
            lines = client.ProbeClient(f"http://127.0.0.1:{port}", silence_seconds=60).stream("/v1/completions", {})
            with pytest.raises(api.ProbeHttpError, match="the answer is longer than 1 MiB"):
                assert sum(map(len, lines)) <= 1 << 20


# --- reports of ranks and of nodes ----------------------------------------------------------------


@bounded
@given(st.lists(near(RANK), max_size=3), near(API), near({"served_name": "", "mtp_tokens": 0, "rdma": True}))
def test_any_reports_of_ranks_are_a_state(reports: list[Any], asked: Any, expected: Any) -> None:
    reports = [
        {**each, "node": node}
        for node, each in zip("abc", [each for each in reports if isinstance(each, dict)], strict=False)
    ]
    reports.append({"node": "head", "state": "running"})
    wanted = shaped(expected, {"served_name": "", "mtp_tokens": 0, "rdma": True})
    merged = state.merge(reports, asked, head="head", expected=wanted)
    printable(merged.as_dict())
    assert state.stall_sentence(merged, 1.0)
    state.progress_token(reports, asked)
    for report in reports:
        assert isinstance(state.state_with_restarts(report, 0, 1), str)


@bounded
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), near(status.NODE), max_size=3))
@example({"a": {"coming": {"model": "m", "rank": 10**12, "nodes": 10**12}}})
@example({"a": {"record": {"model": "m", "members": ["a"]}, "rank": {"node": "elsewhere", "state": "running"}}})
@example({"a": {"last_failure": {"time": 1e300}, "watch": {"state": "x", "since": 1e15}}})
def test_any_reports_of_nodes_make_a_screen(reports: dict[str, Any]) -> None:
    found = status.document(["a", "b", "c"], "a", reports, {}, 1e9)
    printable(found)
    lines = status.screen(found)
    assert all(isinstance(line, str) for line in lines)
    assert len(lines) < 100


# --- what is on the wire between nodes --------------------------------------------------------------


@bounded
@given(st.binary(max_size=120) | near({"magic": fabric_neighbours.MAGIC, "cluster": "c", "node": "", "netdev": ""}))
def test_any_frame_is_a_name_or_nothing(sent: Any) -> None:
    packet = sent if isinstance(sent, bytes) else b"\0" * 14 + json.dumps(sent).encode()
    found = fabric_neighbours.heard(packet, "me", "c")
    assert found is None or all(fabric_neighbours.NAME.fullmatch(each) for each in found)
    assert fabric_neighbours.heard(b"\0" * 14 + DEEP.encode(), "me", "c") is None


@bounded
@given(st.binary(max_size=80))
@example(b"")
@example(b"\x4f" + bytes(80))
def test_any_packet_is_an_answer_or_none(packet: bytes) -> None:
    assert icmp.is_reply(packet, 1, 2) in (True, False)
    answer = icmp.arp_answer(packet)
    assert answer is None or len(answer[0]) == 4


ROWS = st.lists(st.sampled_from(["65536", "1000", "97.1", "x", "nan", "-1", "inf", "9" * 400]), max_size=7).map(
    " ".join
)


@bounded
@given(JSON | near(throughput._IPERF3), st.lists(ROWS | st.text(max_size=40), max_size=4))
def test_any_words_of_a_measurement_are_a_figure_or_its_own_error(report: Any, rows: list[str]) -> None:
    for parse, text in (
        (throughput.parse_iperf3, json.dumps(report)),
        (throughput.parse_iperf3, DEEP),
        (throughput.parse_iperf3, "\n".join(rows)),
        (throughput.parse_ib_bandwidth, "\n".join(rows)),
    ):
        try:
            json.dumps(parse(text), allow_nan=False)
        except throughput.MeasurementError as error:
            assert len(str(error)) < 1000  # noqa: PT017


KEY = b"5" * 64
SWAP = {
    "id": "s", "node": "head", "head": "head", "peers": ["a"], "state": "pending", "why": "", "key": "", "address": "",
}  # fmt: skip
GUARD_HELLO = {"swap": "s", "node": "a", "progress": "", "restarted": True, "done": True}


class Swap:
    """The description that a guard reads."""

    def __init__(self, key: Path) -> None:
        self.armed, self.described = key, {**SWAP, "key": str(key)}

    def read(self) -> dict[str, Any]:
        return self.described


@bounded
@given(near(GUARD_HELLO) | st.just(GUARD_HELLO))
def test_any_question_to_a_guard_that_has_the_key(tmp_path_factory: pytest.TempPathFactory, question: Any) -> None:
    """A hostile member has the key; it cannot end the guard's thread, or speak for a node that takes no part."""
    key = tmp_path_factory.getbasetemp() / "key"
    key.write_bytes(KEY)
    guard = Guard(Swap(key), look=lambda _swap: "")  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    guard.slots.acquire()
    thread = threading.Thread(target=guard._answer, args=(ours,))
    failed: list[Any] = []
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        thread.start()
        with theirs, suppress(tether.UnprovenError, OSError, ValueError):
            channel = tether.connect(theirs, KEY, question, 60.0)
            assert all(isinstance(each, dict) for each in channel.messages())
        thread.join()
    finally:
        threading.excepthook = before
    assert failed == []
    assert guard.done | guard.restarts | guard.progress.keys() <= {"a"}
    assert all(isinstance(each, str) for each in guard.progress.values())


@bounded
@given(near(HELLO))
def test_any_hello_of_a_rank(hello: Any) -> None:
    found = shaped(hello, HELLO)
    assert isinstance(found["rank"], int)
    assert all(isinstance(name, str) for name in environment_difference({"A": "1"}, found["env"]))


@bounded
@given(JSON)
def test_any_proven_message_is_an_object_or_skipped(value: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = tether.Channel(ours, b"s", (b"head", b"rank"), 60.0)
        sender.send(value)
        for text in (DEEP.encode()[:20_000], b"{"):
            mac = tether._mac(b"s", b"head", sender._sent.to_bytes(8, "big"), text)
            sender._sent += 1
            ours.sendall(mac.encode() + b" " + text + b"\n")
        ours.shutdown(socket.SHUT_WR)
        read = list(tether.Channel(theirs, b"s", (b"rank", b"head"), 60.0).messages())
        assert len(read) == isinstance(value, dict)


# --- what another run wrote --------------------------------------------------------------------------


@bounded
@given(st.lists(near(lease.STORED) | near(lease.HOLDER), min_size=1, max_size=2))
@example([{"run": ["x"], "renewed_s": 5.0}])
@example([{"run": "x", "renewed_s": 5.0, "taken_s": 10**400, "process": {"node": "n", "pid": 2**80}}])
def test_any_lease_holds_or_not(tmp_path_factory: pytest.TempPathFactory, written: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("lease")
    for scope, each in zip(lease.SCOPES, written, strict=False):
        (folder / f"{scope}.json").write_text(json.dumps(each), encoding="utf-8")
    leases = lease.read(folder)
    held = lease.others(leases, "me", ["x"], 10.0)
    for each in [lease.shown(one, 10.0) for one in held] + [shaped(one, lease.HOLDER) for one in written]:
        printable(each)
        assert lease.sentence(each)
        assert processes.has_ended({**each["process"], "node": processes.control_node()}) in (True, False)
    assert lease.hold(folder, lease.SCOPES, {"run": "me"}, take_over=True)[0]


PLAN = {"model": "m", "members": ["a"], "spec": {"engine": "ray"}}


@bounded
@given(near(records.RECORD) | near({**records.RECORD, "model": "m"}))
@example({"model": "m", "members": 3})
@example({"model": ["m"], "members": ["a"]})
def test_any_record_of_what_was_verified(written: Any) -> None:
    record = written if isinstance(written, dict) else {}
    choice = choosing.choose("", "own", choosing.Head("head", record), {"model_own": frozenset()})
    assert choice.error or choice.model
    assert isinstance(choosing.placement_error(record, PLAN, "head"), str)


@bounded
@given(st.binary(max_size=80) | near(records.RECORD).map(lambda value: json.dumps(value).encode()))
def test_any_file_of_what_was_verified(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    active = tmp_path_factory.mktemp("record") / "active.json"
    records.verified_path(active).write_bytes(content)
    assert isinstance(records.last_verified(active), dict)
