# SPDX-License-Identifier: Apache-2.0
"""Traces: what is read, what is refused, which prompts share a beginning, and what AIPerf is told and tells."""

from __future__ import annotations

import json

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.trace import (
    TraceError,
    TraceRow,
    aiperf_command,
    parse_aiperf,
    parse_trace,
    shared_share,
    trace_prompt,
)

GOOD = '{"timestamp": 2500, "input_length": 900, "output_length": 40, "hash_ids": [1, 2]}'


def test_times_begin_with_the_first_request_and_are_in_order() -> None:
    rows = parse_trace(
        [GOOD, "", '{"timestamp": 1000, "input_length": 10, "output_length": 2, "hash_ids": [1], "extra": 0}', GOOD]
    )

    assert [row.at_s for row in rows] == [0.0, 1.5, 1.5]
    assert rows[0] == TraceRow(0.0, 10, 2, (1,))
    assert rows[1] == TraceRow(1.5, 900, 40, (1, 2))


def test_a_trace_without_times_keeps_its_order() -> None:
    rows = parse_trace(
        ['{"input_length": 10, "output_length": 2}', '{"input_length": 9, "output_length": 2, "hash_ids": [3]}']
    )

    assert [(row.at_s, row.input_tokens) for row in rows] == [(None, 10), (None, 9)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([GOOD, "{"], "Line 2 of the trace is no JSON"),
        (["[1]"], "Line 1 of the trace is no object"),
        (['{"output_length": 2}'], "has input_length None; it must be a whole number of 1 or more"),
        (['{"input_length": 2.5, "output_length": 2}'], "has input_length 2.5"),
        (['{"input_length": 2, "output_length": 0}'], "has output_length 0"),
        (['{"input_length": true, "output_length": 1}'], "has input_length True"),
        (['{"input_length": 2, "output_length": 1, "hash_ids": ["a"]}'], "has hash_ids ['a']"),
        (['{"input_length": 2, "output_length": 1, "timestamp": -1}'], "has timestamp -1"),
        ([GOOD, '{"input_length": 2, "output_length": 1}'], "1 of 2 requests of the trace have a timestamp"),
        (['{"text_input": "hello"}'], "has text_input; only requests given by their lengths"),
        (["", "  "], "The trace has no request"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(lines: list[str], words: str) -> None:
    with pytest.raises(TraceError) as caught:
        parse_trace(lines)
    assert words in str(caught.value)


def row(*hashes: int) -> TraceRow:
    return TraceRow(None, 1000, 10, hashes)


def test_the_share_that_a_cache_can_find() -> None:
    assert shared_share([row(1, 2, 3), row(1, 2, 4), row(9, 2, 3)]) == pytest.approx(2 / 9)
    assert shared_share([row()]) == 0


def test_requests_with_the_same_hashes_begin_alike_and_end_apart() -> None:
    one, two, three = (
        trace_prompt(each, n, 0.8)(1100, "") for n, each in enumerate([row(1, 2, 3), row(1, 2, 4), row(1, 7, 3)])
    )

    def alike(left: str, right: str) -> int:
        """Return how many words two prompts begin with in common."""
        pairs = zip(left.split(), right.split(), strict=False)
        return next(number for number, (a, b) in enumerate(pairs) if a != b)

    block = int(512 * 0.8 * 0.97)
    assert alike(one, two) >= 2 * block
    assert block <= alike(one, three) < block + 10
    assert len(one.split()) == len(two.split())


def test_a_request_shorter_than_its_blocks_is_cut() -> None:
    build = trace_prompt(row(1, 2, 3), 0, 0.8)
    assert build(1100, "").startswith(build(100, "").partition("\n\n")[0])
    assert len(build(100, " a").partition("\n\n")[0].split()) == 101


def test_the_command_of_the_published_replays() -> None:
    """The options of the published replays [S3], and no dashboard."""
    command = aiperf_command(
        program="/opt/aiperf", model="nvidia/m", tokenizer="/models/m", trace="/t.jsonl", url="http://head:8000",
        artifacts="/a", concurrency=18, requests=700,
    )  # fmt: skip

    line = " ".join(command)
    for words in (
        "/opt/aiperf profile -m nvidia/m",
        "--tokenizer /models/m --tokenizer-trust-remote-code",
        "--input-file /t.jsonl --custom-dataset-type mooncake_trace",
        "--prompt-input-tokens-block-size 512",
        "--url http://head:8000",
        "--streaming --use-server-token-count",
        "--extra-inputs ignore_eos:true",
        "--concurrency 18 --random-seed 42",
        "--request-count 700 --dataset-sampling-strategy sequential",
    ):
        assert words in line
    assert "--fixed-schedule" not in line


def test_a_schedule_is_kept_instead_of_a_concurrency() -> None:
    command = aiperf_command(
        program="aiperf",
        model="m",
        tokenizer="t",
        trace="f",
        url="u",
        artifacts="a",
        concurrency=18,
        requests=0,
        scheduled=True,
    )
    assert "--fixed-schedule" in command
    assert "--concurrency" not in command


def test_the_export_is_read() -> None:
    export = {
        "schema_version": "1.0",
        "time_to_first_token": {"unit": "ms", "avg": 12.5, "p50": 11, "p90": 20, "p99": 30, "count": 4},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 310.8},
        "input_config": {"unit": "x"},
    }
    assert parse_aiperf(json.dumps(export)) == {
        "ttft": {"unit": "ms", "avg": 12.5, "p50": 11, "p90": 20, "p99": 30},
        "output_tokens_per_s": {"unit": "tokens/sec", "avg": 310.8},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is no JSON"), ("[]", "no time_to_first_token"), ('{"request_count": {"unit": "n"}}', "no time")],
)
def test_an_export_without_answers_is_refused(text: str, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        parse_aiperf(text)
