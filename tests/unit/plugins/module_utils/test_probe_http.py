# SPDX-License-Identifier: Apache-2.0
"""The questions to the API, asked over real HTTP of a server in this process that can misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import api as ph
from ansible_collections.gb10.cluster.plugins.module_utils._probe.client import ProbeClient

MODEL = "nvidia/nemotron-3-nano"
KEY = "open-sesame"
# vLLM 0.32.0 /metrics, shortened.
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="x"} 2.0
vllm:num_requests_waiting{engine="0",model_name="x"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="x"} 0.125
vllm:generation_tokens_total{engine="0",model_name="x"} 4096.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="x"} 5.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="x"} 7.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="x"} 12.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="x"} 3.5
python_gc_objects_collected_total{generation="0"} 1.0
"""
Answer = Callable[[dict[str, Any]], Iterator[dict[str, Any]]]


def tokens(text: str, count: int, key: str = "text") -> Iterator[dict[str, Any]]:
    for number in range(count):
        part = text if number == 0 else ""
        choice = {"text": part} if key == "text" else {"delta": {key: part}}
        yield {"choices": [choice], "usage": {"completion_tokens": number + 1}}
    yield {"choices": [{"finish_reason": "length", "delta": {}}], "usage": {"completion_tokens": count}}


def tool_call(arguments: str, name: str = "count_shelf") -> Iterator[dict[str, Any]]:
    for number, part in enumerate((arguments[:5], arguments[5:]), 1):
        function = {"arguments": part, **({"name": name} if number == 1 else {})}
        yield {
            "choices": [{"delta": {"tool_calls": [{"index": 0, "function": function}]}}],
            "usage": {"completion_tokens": number},
        }


class Api:
    """What the server answers; each test changes what it needs."""

    def __init__(self) -> None:
        self.health = 200
        self.models = [MODEL]
        self.completion: Answer = lambda asked: tokens(" four", asked["max_tokens"])
        self.chat: Answer = lambda _asked: tokens("fine", 3, "content")
        self.completion_status = 200
        self.silence_s = 0.0
        self.health_after_completion: int | None = None
        #: Questions that get no answer until they are asked again, each with the event of that.
        self.late: dict[str, threading.Event] = {}
        self.heard: list[str] = []
        self.asked: list[tuple[str, dict[str, Any], str]] = []


class Handler(BaseHTTPRequestHandler):
    api: Api

    def log_message(self, *_args: Any) -> None:
        """Say nothing on stderr."""

    def _send(self, status: int, body: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        api = self.api
        api.heard.append(self.path)
        if self.path in api.late and api.heard.count(self.path) == 1:
            api.late[self.path].wait(60)
            return
        if self.path in api.late:
            api.late[self.path].set()
        if self.path == "/health":
            self._send(api.health, "")
        elif self.headers.get("Authorization") != f"Bearer {KEY}":
            self._send(401, json.dumps({"error": "Unauthorized"}))
        elif self.path == "/v1/models":
            listed = [{"id": name, "root": f"/models/{name}", "max_model_len": 8192} for name in api.models]
            self._send(200, json.dumps({"object": "list", "data": listed}))
        elif self.path == "/metrics":
            self._send(200, METRICS)
        else:
            self._send(404, "")

    def do_POST(self) -> None:
        api = self.api
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        api.asked.append((self.path, asked, self.headers.get("Authorization", "")))
        if self.path == "/tokenize":
            self._send(200, json.dumps({"count": len(asked["prompt"]) // 5, "max_model_len": 8192, "tokens": []}))
            return
        if api.health_after_completion is not None:
            api.health = api.health_after_completion
        if api.completion_status != 200:
            self._send(api.completion_status, json.dumps({"error": {"message": "EngineCore encountered an issue."}}))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.flush()
        time.sleep(api.silence_s)
        answer = api.completion if self.path == "/v1/completions" else api.chat
        for chunk in answer(asked):
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")


@contextmanager
def serving(api: Api) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"api": api}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def probe(api: Api, key: str | None = KEY, silence_seconds: float = 60.0, **wanted: Any) -> dict[str, Any]:
    with serving(api) as url:
        client = ProbeClient(url, api_key=key, silence_seconds=silence_seconds, short_seconds=60.0)
        return ph.probe_api(client, url, ph.Wanted(served_name=MODEL, **wanted))


def pick(results: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the canary of that name."""
    return next(result for result in results if result["name"] == name)


def test_a_healthy_api_yields_tokens() -> None:
    api = Api()
    report = probe(api)
    (canary,) = report["canaries"]
    assert (report["health"], report["models"], report["max_model_len"]) == (200, [MODEL], 8192)
    assert (canary["ok"], canary["tokens"], canary["status"]) == (True, 8, 200)
    assert 0 <= canary["first_token_s"] <= canary["seconds"]
    assert [path for path, _asked, _key in api.asked] == ["/v1/completions"]
    assert api.asked[0][1]["ignore_eos"]
    assert api.asked[0][2] == f"Bearer {KEY}"


def test_metrics_are_summed_over_their_labels() -> None:
    assert probe(Api(), canary=False)["metrics"] == {
        "num_requests_running": 2.0,
        "num_requests_waiting": 1.0,
        "kv_cache_usage_perc": 0.125,
        "generation_tokens_total": 4096.0,
        "request_success_total": 12.0,
        "ttft_count": 12.0,
        "ttft_sum_s": 3.5,
    }


def test_a_wrong_key_is_told_from_a_wrong_model() -> None:
    for key in ("wrong", None):
        report = probe(Api(), key=key)
        assert (report["key_refused"], report["models"], report["canaries"]) == (True, [], [])


def test_of_another_model_no_completion_is_asked() -> None:
    api = Api()
    api.models = ["qwen3.5-397b"]
    report = probe(api)
    assert (report["models"], report["canaries"], api.asked) == (["qwen3.5-397b"], [], [])


def test_503_ends_the_questions() -> None:
    api = Api()
    api.health = 503
    report = probe(api)
    assert (report["health"], report["models_status"]) == (503, 0)


def test_nobody_there_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client = ProbeClient(f"http://127.0.0.1:{free.getsockname()[1]}")
        assert client.get("/health") == ph.Reply(0, "", "refused")


def test_a_listener_that_says_nothing_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        client = ProbeClient(f"http://127.0.0.1:{mute.getsockname()[1]}", short_seconds=0.2)
        assert client.get("/health").error == "timeout"


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_an_answer_that_comes_late_is_waited_for_as_long_as_a_completion_is(path: str) -> None:
    api = Api()
    api.late = {path: threading.Event()}
    with serving(api) as url:
        client = ProbeClient(url, api_key=KEY, silence_seconds=60.0, short_seconds=0.2)
        report = ph.probe_api(client, url, ph.Wanted(served_name=MODEL, canary=False))
    assert (report["health"], report["models"]) == (200, [MODEL])


def test_silence_is_no_token_and_says_how_long() -> None:
    api = Api()
    api.silence_s = 60.0
    (canary,) = probe(api, silence_seconds=0.4)["canaries"]
    assert (canary["ok"], canary["tokens"]) == (False, 0)
    assert canary["detail"] == "no byte for 0 s"


def test_an_answer_without_a_token_is_no_success() -> None:
    api = Api()
    api.completion = lambda _asked: iter(())
    (canary,) = probe(api)["canaries"]
    assert (canary["ok"], canary["detail"]) == (False, "the answer ended without a token")


def test_health_is_asked_again_when_no_token_came() -> None:
    api = Api()
    api.completion_status = 500
    api.health_after_completion = 503
    report = probe(api)
    assert report["health"] == 503
    assert "HTTP 500" in report["canaries"][0]["detail"]
    assert "EngineCore encountered an issue." in report["canaries"][0]["detail"]


def test_an_error_within_the_stream_is_reported() -> None:
    api = Api()
    api.completion = lambda _asked: iter([{"error": {"message": "the engine is gone", "code": 500}}])
    (canary,) = probe(api)["canaries"]
    assert (canary["status"], canary["detail"]) == (500, "the engine is gone")


def test_too_few_tokens_are_named() -> None:
    api = Api()
    api.completion = lambda _asked: iter(list(tokens("x", 3))[:-1])
    (canary,) = probe(api)["canaries"]
    assert (canary["ok"], canary["detail"]) == (False, "3 of 8 tokens came")


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (lambda: tool_call('{"shelf": "B7", "row": 3}'), ""),
        (lambda: tool_call('{"place": "kitchen"}'), 'the arguments are {"place": "kitchen"}, not {"shelf": "B7"'),
        (lambda: tool_call('{"room": '), "the arguments are no JSON"),
        (lambda: tool_call("{}", name="boil"), "the call is of 'boil', not of 'count_shelf'"),
        (lambda: tokens("<tool_call>{}</tool_call>", 4, "content"), "did not take it out: '<tool_call>"),
        (lambda: tokens("Twelve.", 4, "content"), "the model did not call the tool, but answered 'Twelve.'"),
    ],
)
def test_the_tool_call_canary(answer: Callable[[], Iterator[dict[str, Any]]], detail: str) -> None:
    api = Api()
    api.chat = lambda _asked: answer()
    result = pick(probe(api, tool_call=True)["canaries"], "tool_call")
    assert result["ok"] is (detail == "")
    assert detail in result["detail"]
    assert api.asked[1][1]["tools"][0]["function"]["name"] == "count_shelf"


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_the_reasoning_canary_reads_both_names(key: str) -> None:
    api = Api()
    api.chat = lambda _asked: tokens("9.9 is larger because", 4, key)
    assert pick(probe(api, reasoning=True)["canaries"], "reasoning")["ok"]


def test_reasoning_left_in_the_answer_fails() -> None:
    api = Api()
    api.chat = lambda _asked: tokens("<think>hm</think>", 4, "content")
    result = pick(probe(api, reasoning=True)["canaries"], "reasoning")
    assert not result["ok"]
    assert "<think>hm</think>" in result["detail"]


@pytest.mark.parametrize(("said", "ok"), [(ph.NEEDLE_CODE, True), ("I do not know", False)])
def test_the_needle_canary(said: str, ok: bool) -> None:
    api = Api()
    api.chat = lambda _asked: tokens(said, 4, "content")
    result = pick(probe(api, needle_tokens=2000)["canaries"], "needle")
    assert result["ok"] is ok
    prompt = api.asked[-1][1]["messages"][0]["content"]
    assert abs(len(prompt) / 5 - 2000) < 100
    assert 0.4 < prompt.index(ph.NEEDLE_CODE) / len(prompt) < 0.6
    assert prompt.count(ph.NEEDLE_CODE) == 1


def test_optional_canaries_are_left_out_when_no_token_came() -> None:
    api = Api()
    api.completion = lambda _asked: iter(())
    assert len(probe(api, tool_call=True, reasoning=True)["canaries"]) == 1


@pytest.mark.parametrize("body", ["", "null", "[]", '{"data": [7]}', "<html>"])
def test_what_is_no_list_of_models_is_none(body: str) -> None:
    assert ph.parse_models(body) == []


class Odd(BaseHTTPRequestHandler):
    """Redirects, and dies in the middle of a chunk."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_given: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        """Lead elsewhere."""
        self.send_response(302)
        self.send_header("Location", "/health")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        """Promise 255 bytes and give 4."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"ff\r\ndata")
        self.close_connection = True


def test_no_redirect_and_no_half_answer() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        client = ProbeClient(f"http://127.0.0.1:{server.server_address[1]}", api_key=KEY)
        assert client.get("/health").status == 302
        assert client.post("/x", {}).status == 0
        with pytest.raises(ph.ProbeHttpError):
            list(client.stream("/x", {}))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
