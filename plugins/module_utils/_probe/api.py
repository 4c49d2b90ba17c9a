# SPDX-License-Identifier: Apache-2.0
"""Asks an OpenAI-compatible API of vLLM whether it works: health, models, metrics, canaries.

The HTTP itself is done by a callable of the caller's, so that a module can use Ansible's client
and a test none. All limits are on silence (seconds without a byte), never on the complete answer.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import parsed, shaped
from ansible_collections.gb10.cluster.plugins.module_utils._probe import pooling, tool_call

METRICS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
)
#: Of the histogram of times to the first token: its figures, and what a module's result calls them.
_TTFT = {"time_to_first_token_seconds_count": "ttft_count", "time_to_first_token_seconds_sum": "ttft_sum_s"}
#: What is read of one event of a streamed completion.
_CALL = {"index": 0, "function": {"name": "", "arguments": ""}}
_DELTA = {"content": "", "reasoning": "", "reasoning_content": "", "tool_calls": [_CALL]}
_EVENT = {
    "error": None,
    "usage": {"completion_tokens": 0},
    "choices": [{"text": "", "finish_reason": "", "delta": _DELTA}],
}
_MODELS = {"data": [{"id": "", "root": "", "max_model_len": int}]}
#: A token of text has fewer; an engine that counts otherwise must not make the probe write a prompt without end.
_MAX_CHARACTERS_PER_TOKEN = 16.0
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{[^}]*\})? (?P<value>\S+)")

NEEDLE_CODE = "HERON-KITE-5309"
_FILLER = (
    "The inspector of bridge {n} noted {m} rivets, a dry deck and wind from the north-west at noon. "
    "Ledger page {m} of the harbour lists {n} crates of lamps, each with a seal and a number. "
    "On day {n} the gardener planted {m} rows of beans beside the wall and watered them twice. "
)


@dataclass(frozen=True)
class Reply:
    """What came back. status 0: no HTTP answer; error: refused, timeout or the client's words."""

    status: int
    body: str = ""
    error: str = ""


class Client(Protocol):
    """The HTTP that the probe needs."""

    def get(self, path: str, *, patient: bool = False) -> Reply:
        """GET a path below the API's address; patient: wait for as long as for a completion."""

    def post(self, path: str, payload: Mapping[str, Any]) -> Reply:
        """POST JSON and read the complete answer."""

    def stream(self, path: str, payload: Mapping[str, Any]) -> Iterator[str]:
        """POST JSON and yield the lines of a server-sent stream; raises ProbeHttpError."""


class ProbeHttpError(Exception):
    """A request that failed: `status` 0 when there was no HTTP answer at all."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Wanted:
    """Which questions to ask. needle_tokens 0: no needle canary."""

    served_name: str
    #: Whether the engine is one of vLLM's pooling runner, which generates nothing.
    pooling: bool = False
    canary: bool = True
    canary_tokens: int = 8
    needle_tokens: int = 0
    tool_call: bool = False
    reasoning: bool = False
    metrics: bool = True


@dataclass
class CanaryResult:
    """One canary. seconds: until the last byte; first_token_s: until the first token, 0 if none."""

    name: str
    ok: bool = False
    tokens: int = 0
    seconds: float = 0.0
    first_token_s: float = 0.0
    detail: str = ""
    status: int = 0
    #: What a pooling model answered, as a phrase; tokens are then those of the texts.
    answer: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data for a module's result."""
        times = {"seconds": round(self.seconds, 3), "first_token_s": round(self.first_token_s, 3)}
        return {**asdict(self), **times}


@dataclass
class _Streamed:
    text: str = ""
    reasoning: str = ""
    chunks: int = 0
    usage_tokens: int = 0
    first_token_s: float = 0.0
    finish_reason: str = ""
    tool_calls: dict[int, dict[str, str]] = field(default_factory=dict)


def parse_samples(text: str) -> dict[str, float]:
    """The finite figures of vLLM's /metrics by name without its prefix, summed over their labels; no buckets."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        # Most lines are buckets of histograms, and the bench reads this while tokens are timed.
        if not line.startswith("vllm:") or "_bucket{" in line:
            continue
        found = _SAMPLE.match(line)
        with contextlib.suppress(ValueError):
            if found and math.isfinite(value := float(found["value"])):
                sums[found["name"]] = sums.get(found["name"], 0.0) + value
    return {name.removeprefix("vllm:"): value for name, value in sums.items() if math.isfinite(value)}


def parse_metrics(text: str) -> dict[str, float]:
    """The figures of METRICS, by the names that a module's result has."""
    found = {_TTFT.get(name, name): value for name, value in parse_samples(text).items()}
    wanted = [*(name.removeprefix("vllm:") for name in METRICS), *_TTFT.values()]
    return {name: found[name] for name in wanted if name in found}


def parse_models(body: str) -> list[dict[str, Any]]:
    """Name, root and context length of each model that /v1/models lists; [] when it is no such list."""
    listed = shaped(parsed(body), _MODELS)["data"]
    return [{key: model[key] for key in ("id", "root", "max_model_len")} for model in listed]


def _error_of(body: str) -> str:
    answer = parsed(body)
    if answer is None:
        return body.strip()[:300]
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:300]


def needle_prompt(tokens: int, characters_per_token: float) -> str:
    """A text of about so many tokens with one sentence to be found at its middle, and a question."""
    wanted = max(200, int(tokens * characters_per_token))
    parts: list[str] = []
    length, number = 0, 1
    placed = False
    while length < wanted:
        if not placed and length >= wanted // 2:
            parts.append(f"Take note: the password of the night ferry is {NEEDLE_CODE}. ")
            placed = True
        part = _FILLER.format(n=number, m=(number * 7919) % 997)
        parts.append(part)
        length += len(part)
        number += 1
    question = "\nWhat is the password of the night ferry? Answer with the password alone."
    return "".join(parts) + question


def _read_stream(lines: Iterator[str], clock: Callable[[], float]) -> _Streamed:
    begun = clock()
    read = _Streamed()
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            break
        event = shaped(parsed(data), _EVENT)
        if event["error"] is not None:
            raise ProbeHttpError(shaped(event["error"], {"code": 0})["code"] or 500, _error_of(data))
        read.usage_tokens = max(read.usage_tokens, event["usage"]["completion_tokens"])
        for choice in event["choices"]:
            delta = choice["delta"]
            text = choice["text"] or delta["content"]
            reasoning = delta["reasoning"] or delta["reasoning_content"]
            calls = delta["tool_calls"]
            read.finish_reason = choice["finish_reason"] or read.finish_reason
            if text or reasoning or calls or read.usage_tokens:
                read.chunks += 1
                read.first_token_s = read.first_token_s or clock() - begun
            read.text += text
            read.reasoning += reasoning
            for call in calls:
                slot = read.tool_calls.setdefault(call["index"], {"name": "", "arguments": ""})
                slot["name"] += call["function"]["name"]
                slot["arguments"] += call["function"]["arguments"]
    return read


def _run_canary(
    name: str,
    client: Client,
    path: str,
    payload: Mapping[str, Any],
    judge: Callable[[_Streamed], str],
    clock: Callable[[], float],
) -> CanaryResult:
    result = CanaryResult(name)
    begun = clock()
    try:
        read = _read_stream(
            client.stream(
                path,
                {**payload, "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
            ),
            clock,
        )
    except ProbeHttpError as problem:
        result.seconds = clock() - begun
        result.status = problem.status
        result.detail = str(problem)
        return result
    result.seconds = clock() - begun
    result.status = 200
    result.tokens = read.usage_tokens
    result.first_token_s = read.first_token_s
    if not result.tokens:
        result.detail = "the answer ended without a token"
        return result
    result.detail = judge(read)
    result.ok = not result.detail
    return result


def _judge_tool_call(read: _Streamed) -> str:
    return tool_call.wrong_call(list(read.tool_calls.values()), read.reasoning + read.text)


def _judge_reasoning(read: _Streamed) -> str:
    if read.reasoning.strip():
        return ""
    return f"the reasoning parser returned no reasoning; the answer begins {read.text[:120]!r}"


def _judge_needle(read: _Streamed) -> str:
    if NEEDLE_CODE in read.text or NEEDLE_CODE in read.reasoning:
        return ""
    return f"the answer does not contain {NEEDLE_CODE}: {read.text[-160:]!r}"


def _run_pooling(client: Client, served_name: str, clock: Callable[[], float]) -> CanaryResult:
    """Asks for an embedding, then for a score, then for a class, until this model gives it."""
    result = CanaryResult("pooling")
    begun = clock()
    asked = pooling.questions(served_name)
    for question in asked:
        reply = client.post(question.path, question.payload)
        result.status, result.seconds = reply.status, clock() - begun
        if pooling.not_offered(reply.status, reply.body):
            continue
        if reply.status != 200:
            result.detail = f"{question.path}: {reply.error or f'HTTP {reply.status}: {_error_of(reply.body)}'}"
            return result
        result.tokens = pooling.prompt_tokens(reply.body)
        try:
            result.answer = pooling.read_answer(question, reply.body)
        except pooling.ShapeError as problem:
            result.detail = str(problem)
        result.ok = not result.detail
        return result
    result.detail = f"the engine offers none of {', '.join(each.path for each in asked)}"
    return result


def run_canaries(client: Client, wanted: Wanted, clock: Callable[[], float] = time.monotonic) -> list[CanaryResult]:
    """Runs the completion canary and, when it yields tokens, the optional ones; one canary for a pooling model."""
    if wanted.pooling:
        return [_run_pooling(client, wanted.served_name, clock)]
    completion = _run_canary(
        "completion",
        client,
        "/v1/completions",
        {
            "model": wanted.served_name,
            "prompt": "One, two, three,",
            "max_tokens": wanted.canary_tokens,
            "temperature": 0,
            "ignore_eos": True,
        },
        lambda read: (
            ""
            if read.usage_tokens >= wanted.canary_tokens or read.finish_reason == "length"
            else f"{read.usage_tokens} of {wanted.canary_tokens} tokens came"
        ),
        clock,
    )
    results = [completion]
    if not completion.tokens:
        return results

    def chat(name: str, question: str, judge: Callable[[_Streamed], str], **more: Any) -> None:
        messages = [{"role": "user", "content": question}]
        payload = {"model": wanted.served_name, "temperature": 0, "messages": messages, **more}
        results.append(_run_canary(name, client, "/v1/chat/completions", payload, judge, clock))

    if wanted.reasoning:
        question = "Which is larger, 9.11 or 9.9? Think before you answer."
        chat("reasoning", question, _judge_reasoning, max_tokens=512)
    if wanted.tool_call:
        chat("tool_call", tool_call.QUESTION, _judge_tool_call, **tool_call.REQUEST, max_tokens=1024)
    if wanted.needle_tokens:
        prompt = needle_prompt(wanted.needle_tokens, _characters_per_token(client, wanted.served_name))
        chat("needle", prompt, _judge_needle, max_tokens=2048)
    return results


def _characters_per_token(client: Client, served_name: str) -> float:
    sample = needle_prompt(1000, 4.0)
    reply = client.post("/tokenize", {"model": served_name, "prompt": sample})
    count = shaped(parsed(reply.body), {"count": 0})["count"]
    return min(_MAX_CHARACTERS_PER_TOKEN, len(sample) / count) if count > 0 else 4.0


def ask(client: Client, path: str) -> Reply:
    """Ask quickly, for most answers come at once; a silence counts only after as long as that of a completion."""
    reply = client.get(path)
    return client.get(path, patient=True) if reply.error == "timeout" else reply


def probe_api(client: Client, url: str, wanted: Wanted, *, canaries: bool = True) -> dict[str, Any]:
    """The API's report: health, models, metrics and canaries, as `probe.merge` reads it.

    Later questions are asked only when the earlier ones were answered: a dead engine costs one
    request. canaries: false leaves completions out, for a caller that knows a rank to be gone.
    """
    report: dict[str, Any] = {
        "url": url,
        "health": 0,
        "health_error": "",
        "models": [],
        "roots": [],
        "models_status": 0,
        "key_refused": False,
        "max_model_len": None,
        "canaries": [],
        "metrics": {},
    }
    health = ask(client, "/health")
    report["health"], report["health_error"] = health.status, health.error
    if health.status != 200:
        return report
    listed = ask(client, "/v1/models")
    report["models_status"] = listed.status
    report["key_refused"] = listed.status in (401, 403)
    models = parse_models(listed.body) if listed.status == 200 else []
    report["models"] = [model["id"] for model in models]
    report["roots"] = [model["root"] for model in models]
    for model in models:
        if model["id"] == wanted.served_name:
            report["max_model_len"] = model["max_model_len"]
    if wanted.metrics:
        metrics = client.get("/metrics")
        report["metrics"] = parse_metrics(metrics.body) if metrics.status == 200 else {}
    if wanted.canary and canaries and wanted.served_name in report["models"]:
        report["canaries"] = [result.as_dict() for result in run_canaries(client, wanted)]
        if not (report["canaries"][0]["tokens"] or report["canaries"][0]["ok"]):
            again = ask(client, "/health")
            report["health"], report["health_error"] = again.status, again.error
    return report
