# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from ansible_collections.gb10.cluster.plugins.module_utils._probe.journal import line_text, merged, parse_entries


def entry(time_us: int, message: object, **more: str) -> str:
    return json.dumps({"__REALTIME_TIMESTAMP": str(time_us), "MESSAGE": message, **more})


def test_entries_of_a_journal() -> None:
    output = "\n".join(
        [
            entry(1_000_000, "one", _SYSTEMD_UNIT="vllm-a.service"),
            # systemd's own words name the unit elsewhere; bytes come as numbers; a progress bar redraws itself.
            entry(2_000_000, "Started", UNIT="vllm-a.service", _SYSTEMD_UNIT="init.scope"),
            entry(3_000_000, list(b"\x1b[31mred\x1b[0m"), _SYSTEMD_UNIT="vllm-a.service"),
            entry(4_000_000, " 1/2\r 2/2", _SYSTEMD_UNIT="vllm-a.service"),
            entry(5_000_000, "two\nlines", _SYSTEMD_UNIT="vllm-a.service"),
            entry(6_000_000, None),
            '{"__REALTIME_TIMESTAMP": "7000000", "MESS',
            "[]",
        ]
    )
    assert [(each["time_us"] // 1_000_000, each["unit"], each["text"]) for each in parse_entries(output)] == [
        (1, "vllm-a.service", "one"),
        (2, "vllm-a.service", "Started"),
        (3, "vllm-a.service", "red"),
        (4, "vllm-a.service", " 2/2"),
        (5, "vllm-a.service", "two"),
        (5, "vllm-a.service", "lines"),
        (6, "", ""),
    ]


def test_what_comes_newest_first_is_turned_round() -> None:
    output = "\n".join([entry(2, "b\nc"), entry(1, "a")])
    assert [each["text"] for each in parse_entries(output, newest_first=True)] == ["a", "b", "c"]


def test_a_token_is_masked() -> None:
    (found,) = parse_entries(entry(1, "non-default args: {'api_key': ['sk-very-secret']}"))
    assert "sk-very-secret" not in found["text"]


def test_a_line() -> None:
    assert line_text("gx10-1", "vllm-a.service", 1_795_264_000_123_456, "text", 7, 8) == (
        "2026-11-21 12:26:40.123 gx10-1  vllm-a   text"
    )


def test_nodes_are_merged_by_time_and_each_keeps_its_order() -> None:
    told = {
        "gx10-2": [
            {"time_us": at, "unit": "vllm-a.service", "text": text} for at, text in ((2, "c"), (2, "b"), (9, "z"))
        ],
        "gx10-1": [
            {"time_us": at, "unit": "vllm-a.service", "text": text} for at, text in ((1, "a"), (2, "d"), (8, "y"))
        ],
        "gx10-3": [],
    }
    assert [line.split()[2] + line.split()[-1] for line in merged(told)] == [
        "gx10-1a", "gx10-1d", "gx10-2c", "gx10-2b", "gx10-1y", "gx10-2z",
    ]  # fmt: skip
    assert merged({}) == []
