# SPDX-License-Identifier: Apache-2.0
"""A streamed answer, whole or broken in each way that was thought of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stream import (
    FAILURES,
    Answer,
    EventReader,
    excerpt,
    split_reasoning,
)


def token(text: str = "x", **delta: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text, **delta}, "finish_reason": None}]})


def last(text: str = "x") -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "length"}]})


def usage(prompt: int, completion: int) -> str:
    return json.dumps({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


ROLE = json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})


def heard(*events: str, unfinished: str = "") -> Answer:
    """Return the answer of events that arrive 0.1 s apart, the first one after 1 s."""
    answer = Answer()
    for number, data in enumerate(events):
        answer.take(data, 1.0 + number / 10)
    answer.close(unfinished)
    return answer


def test_a_whole_answer() -> None:
    answer = heard(ROLE, token("Good "), token("morn"), last("ing"), usage(20, 3), "[DONE]")

    assert answer.failure == ""
    assert answer.notes == []
    assert (answer.input_tokens, answer.output_tokens) == (20, 3)
    assert answer.first_s == pytest.approx(1.1)  # the role alone is no token
    assert answer.last_s == pytest.approx(1.3)  # the usage is none either
    assert answer.gaps_s == pytest.approx([0.1, 0.1])
    assert answer.said == ("", "Good morning")
    assert answer.finish == "length"


def test_a_completion_without_chat() -> None:
    one = json.dumps({"choices": [{"text": "a", "finish_reason": None}]})
    two = json.dumps({"choices": [{"text": "b", "finish_reason": "stop"}]})
    answer = heard(one, two, usage(4, 2), "[DONE]")

    assert answer.failure == ""
    assert answer.said == ("", "ab")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_and_content_are_told_apart(name: str) -> None:
    answer = heard(token("", **{name: "hm"}), token("", **{name: "m"}), last("42"), usage(9, 3), "[DONE]")

    assert answer.said == ("hmm", "42")
    assert answer.first_s == pytest.approx(1.0)  # reasoning is made of tokens too


def test_the_end_of_the_sequence_has_no_text_and_counts_in_the_time() -> None:
    end = json.dumps({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]})
    answer = heard(token(), token(), end, usage(9, 3), "[DONE]")

    assert answer.last_s == pytest.approx(1.2)
    assert len(answer.gaps_s) == 1


@pytest.mark.parametrize(
    ("events", "kind", "words"),
    [
        ([token(), token()], "cut", "closed after 2 chunks without finish_reason and [DONE]"),
        ([token(), last()], "cut", "closed after 2 chunks without [DONE]"),
        ([], "cut", "closed after 0 chunks"),
        ([token(), "{not json", last(), usage(1, 2), "[DONE]"], "malformed", "chunk 2 is no JSON: {not json"),
        ([token(), "[1, 2]", last(), usage(1, 2), "[DONE]"], "malformed", "chunk 2 is no object: [1, 2]"),
        (['{"choices": [7]}'], "malformed", "chunk 1 has not the form of a completion"),
        (['{"choices": [], "usage": {"prompt_tokens": 3}}'], "malformed", "has not the form of a completion"),
        ([token(), '{"error": {"message": "engine died", "code": 500}}'], "error", "after 1 chunks: engine died"),
        ([token(), '{"error": "engine died"}'], "error", "engine died"),
        ([token(), last(), "[DONE]"], "no_usage", "2 chunks and no usage; the server must support"),
        ([token(), usage(5, 1), last(), usage(6, 2), "[DONE]"], "usage_contradicts", "were reported as 5+1, 6+2"),
        ([token(), usage(5, 3), last(), usage(5, 2), "[DONE]"], "usage_contradicts", "were reported as 5+3, 5+2"),
        ([ROLE, usage(5, 0), "[DONE]"], "empty", "2 chunks without text; usage reports 0 tokens"),
        ([ROLE, last(""), usage(5, 4), "[DONE]"], "empty", "usage reports 4 tokens"),
    ],
)
def test_what_is_broken_has_a_name(events: list[str], kind: str, words: str) -> None:
    answer = heard(*events)

    assert kind in FAILURES
    assert (answer.failure, words in answer.detail) == (kind, True), answer.detail


def test_the_first_thing_that_is_wrong_stays() -> None:
    assert heard(token(), "nonsense").failure == "malformed"


def test_repeated_usage_is_said_and_not_added_up() -> None:
    answer = heard(token(), usage(5, 1), last(), usage(5, 2), usage(5, 2), "[DONE]")

    assert answer.failure == ""
    assert (answer.input_tokens, answer.output_tokens) == (5, 2)
    assert answer.notes == ["usage came 3 times, the last one counts"]


def test_an_answer_that_is_whole_but_for_its_end_mark_is_noted() -> None:
    answer = heard(token(), last(), usage(5, 2))

    assert answer.failure == ""
    assert answer.notes == ["closed without [DONE]"]


def test_what_comes_after_the_end_is_noted_and_left_out() -> None:
    answer = heard(last(), usage(5, 1), "[DONE]", usage(5, 9), usage(5, 9))

    assert answer.output_tokens == 1
    assert answer.notes == ["data came after [DONE]"]


def test_a_cut_in_the_middle_of_an_event_shows_it() -> None:
    assert 'in the middle of data: {"cho' in heard(token(), unfinished='data: {"cho').detail


def test_events_are_found_wherever_the_network_cuts_them() -> None:
    stream = (
        'data: {"a": 1}\n\n: a comment\r\ndata:two\r\n\r\n'
        "event: x\ndata: three\ndata: lines\n\nid: 9\n\ndata: \u00e9\n\n"
    ).encode()
    expected = ['{"a": 1}', "two", "three\nlines", "\u00e9"]
    for cut in range(len(stream) + 1):
        reader = EventReader()
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == expected
        assert reader.unfinished == ""
    reader = EventReader()
    assert [data for byte in stream for data in reader.feed(bytes([byte]))] == expected


def test_what_is_left_of_an_event_is_kept() -> None:
    reader = EventReader()
    reader.feed(b"data: one\n\ndata: tw")
    assert reader.unfinished == "data: tw"


@pytest.mark.parametrize(
    ("reasoning", "content", "expected"),
    [
        ("", "<think>a b</think>\n42", ("a b", "\n42")),
        ("", "a b</think>42", ("a b", "42")),
        ("r", "<think>a</think>42", ("r", "<think>a</think>42")),
        ("", "42", ("", "42")),
    ],
)
def test_reasoning_without_a_parser(reasoning: str, content: str, expected: tuple[str, str]) -> None:
    assert split_reasoning(reasoning, content) == expected


def test_long_texts_are_cut_for_messages() -> None:
    assert excerpt("a\n  b") == "a b"
    assert len(excerpt("x" * 500)) == 120
