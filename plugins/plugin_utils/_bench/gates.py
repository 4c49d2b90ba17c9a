# SPDX-License-Identifier: Apache-2.0
"""Quality gates beside speed: what is asked of a model, and what its answers are worth; pure.

A fast engine whose answers are wrong is not fast. Each gate is a few requests at temperature 0 with one right answer:
``needle`` (a fact at several depths of a long context), ``answers`` (short questions), ``tool_call`` and ``reasoning``
(the parsers that the model file names).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe import tool_call
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import Asked, Heard

GATES = ("needle", "answers", "tool_call", "reasoning")
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
ALONE = "Answer with the result alone: no other words, no formatting."
#: Kind, question, the one right answer. Letters may be of either case, unless the right answer is in capitals.
QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("arithmetic", "What is 17 times 23?", "391"),
    ("arithmetic", "What is 1000 minus 387?", "613"),
    ("arithmetic", "What is 144 divided by 12, plus 5?", "17"),
    ("arithmetic", "A crate holds 24 jars. How many jars are in 7 full crates and 5 single jars together?", "173"),
    ("string", "Write the word quarry in capital letters.", "QUARRY"),
    ("string", "Join the words sun and dial into one word.", "sundial"),
    ("string", "Which word do the first letters of these words spell, in order: lemon apple mirror pepper?", "lamp"),
    ("string", "Which of these words comes first in alphabetical order: pear, fig, quince, cherry?", "cherry"),
    ("extraction", 'Here is JSON: {"box": "n3", "port": 8443, "state": "idle"}. What is the port?', "8443"),
    ("extraction", "Parcel 4471 was packed on 3 May and sent on 9 May. On which date was it sent?", "9 May"),
    ("extraction", "Log: 12:01 start; 12:04 warning, disk at 91 percent; 12:09 stop. When did it stop?", "12:09"),
    ("extraction", "A table in CSV: name,city / Ida,Oslo / Bo,Turku / Cem,Izmir. In which city is Bo?", "Turku"),
)
REASONING_QUESTION = (
    "A ferry leaves at 09:40 and needs 85 minutes. When does it arrive? Think it through first. "
    "Then answer with the time alone, as HH:MM."
)
REASONING_ANSWER = "11:05"
#: What stands in an answer whose reasoning no parser took out of it.
REASONING_MARKS = ("<think>", "</think>", "[THINK]", "[/THINK]", "<|channel|>", "<|start|>")
PARSERS = {"tool_call": "tool-call-parser", "reasoning": "reasoning-parser"}
SHOWN_CHARS = 160
OUTPUT_SETTING = "bench_gate_output_tokens"


@dataclass(frozen=True)
class Room:
    """Tokens for the gates, as the served context length has room for them."""

    needle_tokens: int
    output_tokens: int


def room(limit: int | None, needle_tokens: int, output_tokens: int) -> Room:
    """Return what was asked for, or what the served context length has room for: at most half of it for an answer."""
    if not limit:
        return Room(needle_tokens, output_tokens)
    answer = min(output_tokens, limit // 2)
    return Room(min(needle_tokens, limit - answer), answer)


def not_for(gate: str, serve: Mapping[str, Any], *, chat: bool) -> str:
    """Return why a gate does not apply to what is served, or an empty text."""
    if serve.get("runner") == "pooling":
        return "a pooling model generates nothing"
    if gate in PARSERS and not chat:
        return "bench_api is completions, which has no parsers"
    if gate in PARSERS and not serve.get(PARSERS[gate]):
        return f"the model file names no {PARSERS[gate]}"
    return ""


def requests(gate: str, output_tokens: int) -> list[Asked]:
    """Return the requests of a gate other than the needle."""
    if gate == "answers":
        texts = [f"{question} {ALONE}" for _kind, question, _answer in QUESTIONS]
    else:
        texts = [tool_call.QUESTION if gate == "tool_call" else REASONING_QUESTION]
    more = dict(tool_call.REQUEST) if gate == "tool_call" else {}
    return [
        Asked(text, output_tokens, ignore_eos=False, request_id=f"gate-{gate}-{number}", more=more)
        for number, text in enumerate(texts)
    ]


def plain(text: str) -> str:
    """Return an answer without white space, quotes, emphasis and a full stop around it."""
    return text.strip().strip("*_`\"'").strip().removesuffix(".").strip("*_`\"'").strip()


def right(content: str, answer: str) -> bool:
    """Return whether the content is the answer and nothing else."""
    given = plain(content)
    return given == answer if answer.isupper() else given.casefold() == answer.casefold()


def _cut(heard: Heard) -> str:
    return f" (max_tokens ended it: raise {OUTPUT_SETTING})" if heard.finish == "length" else ""


def _row(asked: str, expected: str, heard: Heard, wrong: str) -> dict[str, Any]:
    """Return what was asked, expected and answered, and what is wrong with it; empty when nothing is."""
    if not heard.request.ok:
        wrong = f"{heard.request.failure}: {heard.request.detail}"
    return {
        "asked": asked,
        "expected": expected,
        "answer": heard.content.strip()[:SHOWN_CHARS],
        "right": not wrong,
        "wrong": wrong,
    }


def verdict(gate: str, status: str, sentence: str, found: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a gate's result as it stands in the results."""
    return {"gate": gate, "status": status, "sentence": sentence, "rows": list(found)}


def judge_answers(heard: Sequence[Heard], least_share: float) -> dict[str, Any]:
    """Judge the short questions: at least this share of them must be answered exactly."""
    found = []
    for (_kind, question, answer), each in zip(QUESTIONS, heard, strict=True):
        wrong = "" if right(each.content, answer) else f"the answer is not {answer}{_cut(each)}"
        found.append(_row(question, answer, each, wrong))
    good = sum(row["right"] for row in found)
    sentence = f"{good} of {len(found)} answers are right, {least_share:.0%} must be"
    return verdict("answers", PASSED if good >= least_share * len(found) else FAILED, sentence, found)


def judge_tool_call(heard: Heard) -> dict[str, Any]:
    """Judge the tool-call canary: one call of the tool with the right JSON arguments, as the parser streams it."""
    wrong = tool_call.wrong_call(heard.tool_calls, heard.reasoning + heard.content)
    row = _row(tool_call.QUESTION, json.dumps(tool_call.ARGUMENTS), heard, wrong and f"{wrong}{_cut(heard)}")
    if row["right"]:
        return verdict("tool_call", PASSED, "one call of the tool with the right arguments", [row])
    return verdict("tool_call", FAILED, row["wrong"], [row])


def wrong_reasoning(heard: Heard) -> str:
    """Return what is wrong with how reasoning and answer came, or an empty text."""
    if not heard.separated and heard.reasoning:
        return f"the reasoning stands in the answer, the reasoning parser did not take it out{_cut(heard)}"
    marks = [mark for mark in REASONING_MARKS if mark in heard.content]
    if marks:
        return f"{' and '.join(marks)} of the reasoning stand in the answer{_cut(heard)}"
    if not heard.content.strip():
        return f"all of it came as reasoning, the answer is empty{_cut(heard)}"
    if not right(heard.content, REASONING_ANSWER):
        return f"the answer is not {REASONING_ANSWER}{_cut(heard)}"
    return ""


def judge_reasoning(heard: Heard) -> dict[str, Any]:
    """Judge the reasoning canary: the parser sends the reasoning apart, and the answer is the answer alone."""
    row = _row(REASONING_QUESTION, REASONING_ANSWER, heard, wrong_reasoning(heard))
    if not row["right"]:
        return verdict("reasoning", FAILED, row["wrong"], [row])
    if not heard.separated:
        return verdict("reasoning", SKIPPED, "the model answered without reasoning, so nothing was separated", [row])
    sentence = f"{len(heard.reasoning)} characters of reasoning came apart from the answer"
    return verdict("reasoning", PASSED, sentence, [row])


def judge_needles(needles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Judge the needles of `run.run_needles`: each must be answered with the pass phrase and nothing else."""
    found = [
        {
            "asked": f"{each['input_tokens']} tokens, depth {each['measured_depth']:.0%}",
            "expected": each["code"],
            "answer": str(each["content"]).strip()[:SHOWN_CHARS],
            "right": each["verdict"] == "exact",
            "wrong": "" if each["verdict"] == "exact" else each["sentence"],
        }
        for each in needles
    ]
    good = sum(row["right"] for row in found)
    sentence = f"{good} of {len(found)} pass phrases were given exactly"
    return verdict("needle", PASSED if good == len(found) else FAILED, sentence, found)


def lost(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each gate that the earlier run passed and this one did not."""
    passed = {each["gate"] for each in (before or {}).get("gates") or [] if each["status"] == PASSED}
    return [
        f"The gate {each['gate']} passed before, and now fails: {each['sentence']}."
        for each in now.get("gates") or []
        if each["gate"] in passed and each["status"] == FAILED
    ]


def failures(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each gate that failed."""
    return [
        f"The quality gate {each['gate']} failed: {each['sentence']}." for each in found if each["status"] == FAILED
    ]
