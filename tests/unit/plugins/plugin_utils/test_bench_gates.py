# SPDX-License-Identifier: Apache-2.0
"""The quality gates: what they ask, and what answers of engines, right and wrong, are worth."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import tool_call
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import gates
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import Endpoint, Heard, connect
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.run import run_gates
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.server import MODEL, Behaviour, ZeroWorkServer
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import Request
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stream import Answer

DONE = Request(0, 0.0, 1.0, first_s=0.5, input_tokens=9, output_tokens=9)


def heard(content: str = "", reasoning: str = "", *calls: tuple[str, str], finish: str = "stop") -> Heard:
    """Return an answer whose reasoning, where there is any, came from the server apart."""
    tools = tuple({"name": name, "arguments": arguments} for name, arguments in calls)
    return Heard(DONE, reasoning, content, finish, bool(reasoning), tools)


def streamed(*deltas: dict[str, Any]) -> Heard:
    """Return what the client makes of these pieces of a chat completion."""
    answer = Answer()
    for number, delta in enumerate(deltas):
        answer.take(json.dumps({"choices": [{"delta": delta}]}), 0.1 * number)
    reasoning, content = answer.said
    calls = tuple(call for _index, call in sorted(answer.tool_calls.items()))
    return Heard(DONE, reasoning, content, "stop", bool("".join(answer.reasoning)), calls)


# --- the short questions --------------------------------------------------------------------------


def test_questions_have_one_short_answer_each_and_ask_for_it_alone() -> None:
    assert len({question for _kind, question, _answer in gates.QUESTIONS}) == len(gates.QUESTIONS) == 12
    assert {kind for kind, _question, _answer in gates.QUESTIONS} == {"arithmetic", "string", "extraction"}
    asked = gates.requests("answers", 64)
    assert all(each.prompt.endswith(gates.ALONE) and each.temperature == 0.0 for each in asked)
    assert not any(each.ignore_eos or each.more for each in asked)
    # The sums are right.
    assert [answer for kind, _q, answer in gates.QUESTIONS if kind == "arithmetic"] == [
        str(17 * 23), str(1000 - 387), str(144 // 12 + 5), str(24 * 7 + 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "answer", "good"),
    [
        ("391", "391", True), ("\n\n391\n", "391", True), ("**391**", "391", True), ("`391`.", "391", True),
        ("**391.**", "391", True), ('"Sundial"', "sundial", True), ("9 May", "9 May", True), ("QUARRY", "QUARRY", True),
        ("quarry", "QUARRY", False), ("17 * 23 = 391", "391", False), ("3910", "391", False), ("", "391", False),
        ("The answer is 391", "391", False),
    ],
)  # fmt: skip
def test_an_answer_is_right_when_it_is_the_answer_and_nothing_else(content: str, answer: str, good: bool) -> None:
    assert gates.right(content, answer) is good


def test_the_share_of_right_answers_decides() -> None:
    answers = [answer for _kind, _question, answer in gates.QUESTIONS]
    some = [heard(answer) for answer in answers[:9]] + [heard("no", finish="length")] * 3
    passed = gates.judge_answers(some, 0.75)
    assert (passed["status"], passed["sentence"]) == ("passed", "9 of 12 answers are right, 75% must be")
    failed = gates.judge_answers(some, 0.8)
    assert failed["status"] == "failed"
    assert [row["right"] for row in failed["rows"]] == [True] * 9 + [False] * 3
    assert "raise bench_gate_output_tokens" in failed["rows"][-1]["wrong"]


def test_a_request_that_failed_is_a_wrong_answer_with_its_reason() -> None:
    bad = Heard(Request(0, 0.0, 1.0, failure="http", detail="400: no tools"), "", "391", "")
    assert gates.judge_answers([bad] * 12, 0.5)["rows"][0]["wrong"] == "http: 400: no tools"
    assert gates.judge_tool_call(bad)["sentence"] == "http: 400: no tools"


# --- tool calls -----------------------------------------------------------------------------------


def test_a_streamed_call_is_put_together() -> None:
    # As vLLM streams it: the name first, then the arguments in pieces.
    call = streamed(
        {"role": "assistant", "content": ""},
        {
            "tool_calls": [
                {"index": 0, "id": "chatcmpl-tool-1", "type": "function", "function": {"name": "count_shelf"}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"shelf": "B7'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '", "row": 3}'}}]},
    )
    assert call.tool_calls == ({"name": "count_shelf", "arguments": '{"shelf": "B7", "row": 3}'},)
    assert gates.judge_tool_call(call)["status"] == "passed"


RIGHT = ("count_shelf", '{"row": 3, "shelf": "B7"}')


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (heard("", "I call it.", RIGHT), ""),
        (heard("There are 12."), "the model did not call the tool"),
        (heard('<tool_call>\n{"name": "count_shelf", "arguments": {}}\n</tool_call>'), "the call stands in the text"),
        (heard("", "", RIGHT, RIGHT), "2 calls came instead of one"),
        (heard("", "", ("countShelf", "{}")), "the call is of 'countShelf', not of 'count_shelf'"),
        (heard("", "", ("count_shelf", '{"shelf": "B7"')), 'the arguments are no JSON: {"shelf": "B7"'),
        (
            heard("", "", ("count_shelf", '{"shelf": "B7", "row": "3"}')),
            'the arguments are {"shelf": "B7", "row": "3"}',
        ),
        (heard("", "thinking", finish="length"), "raise bench_gate_output_tokens"),
    ],
)
def test_what_is_wrong_with_a_call_has_a_name(answer: Heard, words: str) -> None:
    found = gates.judge_tool_call(answer)
    assert found["status"] == ("failed" if words else "passed")
    assert words in found["sentence"]


def test_the_canary_brings_its_tool() -> None:
    (asked,) = gates.requests("tool_call", 512)
    assert asked.more == tool_call.REQUEST
    wanted = tool_call.TOOL["function"]["parameters"]["properties"]
    assert wanted.keys() == tool_call.ARGUMENTS.keys()


# --- reasoning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (streamed({"reasoning": "85 is 1 h 25."}, {"content": "11:05"}), "passed", "13 characters of reasoning"),
        (streamed({"reasoning_content": "1 h 25."}, {"content": "\n\n11:05"}), "passed", "came apart"),
        (streamed({"content": "<think>1 h 25.</think>11:05"}), "failed", "the reasoning parser did not take it out"),
        (streamed({"content": "1 h 25 more. </think> 11:05"}), "failed", "the reasoning parser did not take it out"),
        (streamed({"reasoning": "so"}, {"content": "</think>11:05"}), "failed", "</think> of the reasoning stand in"),
        (streamed({"reasoning": "so it is 11:05"}), "failed", "all of it came as reasoning"),
        (streamed({"reasoning": "so"}, {"content": "11:15"}), "failed", "the answer is not 11:05"),
        (streamed({"content": "11:05"}), "skipped", "without reasoning"),
        (streamed({"content": "It arrives."}), "failed", "the answer is not 11:05"),
    ],
)
def test_reasoning_comes_apart_from_the_answer(answer: Heard, status: str, words: str) -> None:
    found = gates.judge_reasoning(answer)
    assert (found["status"], words in found["sentence"]) == (status, True), found["sentence"]


# --- needles, room, and which gates apply -----------------------------------------------------------


def needle(verdict: str) -> dict[str, Any]:
    return {
        "verdict": verdict, "sentence": "the pass phrase was not given", "code": "OLD-PILOT-1", "content": " x ",
        "input_tokens": 900, "measured_depth": 0.5,
    }  # fmt: skip


def test_every_needle_must_be_found_exactly() -> None:
    assert gates.judge_needles([needle("exact")] * 3)["status"] == "passed"
    found = gates.judge_needles([needle("exact"), needle("contained")])
    assert (found["status"], found["sentence"]) == ("failed", "1 of 2 pass phrases were given exactly")
    assert found["rows"][1]["asked"] == "900 tokens, depth 50%"


@pytest.mark.parametrize(
    ("limit", "tokens"), [(None, (16384, 4096)), (262144, (16384, 4096)), (16384, (12288, 4096)), (4096, (2048, 2048))]
)
def test_gates_fit_into_what_is_served(limit: int | None, tokens: tuple[int, int]) -> None:
    found = gates.room(limit, 16384, 4096)
    assert (found.needle_tokens, found.output_tokens) == tokens


@pytest.mark.parametrize(
    ("gate", "serve", "chat", "words"),
    [
        ("answers", {}, True, ""),
        ("answers", {"runner": "pooling"}, False, "a pooling model generates nothing"),
        ("tool_call", {}, True, "the model file names no tool-call-parser"),
        ("tool_call", {"tool-call-parser": "hermes"}, True, ""),
        ("reasoning", {"tool-call-parser": "hermes"}, True, "the model file names no reasoning-parser"),
        ("reasoning", {"reasoning-parser": "x"}, False, "bench_api is completions, which has no parsers"),
    ],
)
def test_a_gate_that_does_not_apply_has_a_reason(gate: str, serve: dict[str, Any], chat: bool, words: str) -> None:
    assert gates.not_for(gate, serve, chat=chat) == words


def test_a_gate_that_was_passed_before_is_lost() -> None:
    before = {"gates": [gates.verdict("answers", "passed", ""), gates.verdict("needle", "failed", "")]}
    now = {"gates": [gates.verdict("answers", "failed", "2 of 12"), gates.verdict("needle", "failed", "0 of 3")]}
    assert gates.lost(before, now) == ["The gate answers passed before, and now fails: 2 of 12."]
    assert gates.lost(None, now) == []
    assert gates.failures(now["gates"])[1] == "The quality gate needle failed: 0 of 3."


class Clever(ZeroWorkServer):
    """Knows every answer, and calls the tool."""

    async def complete(self, asked: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> None:
        text = asked["messages"][-1]["content"]
        known = {question: answer for _kind, question, answer in gates.QUESTIONS}
        deltas: list[dict[str, Any]] = [{"content": known.get(text.removesuffix(f" {gates.ALONE}"), "11:05")}]
        if asked.get("tools"):
            function = {"name": "count_shelf", "arguments": json.dumps(tool_call.ARGUMENTS)}
            deltas = [{"tool_calls": [{"index": 0, "function": function}]}]
        elif text == gates.REASONING_QUESTION:
            deltas = [{"reasoning": "1 h 25."}, *deltas]
        elif "lighthouse" in text:
            deltas = [{"content": text.split("lighthouse is ")[1].split(".")[0]}]
        self.begin(writer)
        for number, delta in enumerate(deltas, 1):
            finish = "stop" if number == len(deltas) else None
            await self.event(writer, json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}))
        usage = {"prompt_tokens": self.count(asked), "completion_tokens": len(deltas)}
        await self.event(writer, json.dumps({"choices": [], "usage": usage}))
        await self.event(writer, "[DONE]")


@pytest.mark.parametrize(
    ("server", "status"), [(Clever(Behaviour()), "passed"), (ZeroWorkServer(Behaviour()), "failed")]
)
def test_all_gates_against_a_server(server: ZeroWorkServer, status: str) -> None:
    said: list[str] = []
    how = {
        "limit": 2000, "needle_tokens": 4000, "needle_depths": [0.1, 0.9], "output_tokens": 64, "answers_share": 1.0,
        "at_once": 0, "seed": "s",
    }  # fmt: skip
    serve = {"tool-call-parser": "hermes", "reasoning-parser": "deepseek_r1"}

    async def work() -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{await server.start()}"
        async with connect(Endpoint(url, MODEL, stall_s=20)) as client:
            found = await run_gates(client, gates.GATES, serve, how, said.append)
        await server.stop()
        return found

    found = asyncio.run(asyncio.wait_for(work(), 60))
    assert [(each["gate"], each["status"]) for each in found] == [(gate, status) for gate in gates.GATES]
    assert [len(each["rows"]) for each in found] == [2, 12, 1, 1]
    assert f"gate tool_call: {status}, " in "\n".join(said)
