# SPDX-License-Identifier: Apache-2.0
"""What a node's modules, its journal and its files hold: a value or a sentence, within bounds, never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.gb10.cluster.plugins.module_utils._fabric import ports, throughput
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._probe import journal, rank
from tests.unit.plugins.module_utils.hostile import DEEP, JSON, bounded, near

NAMES = st.sampled_from(["a", "b", "c", "", "\ud800"])
#: What `journalctl --output=json` prints of one line.
ENTRY = {"__REALTIME_TIMESTAMP": "1700000000000000", "MESSAGE": "text", "UNIT": "a.service", "INVOCATION_ID": "1"}
REPORTED = {"time_us": 1_700_000_000_000_000, "unit": "a.service", "text": "text"}


# --- the fabric ------------------------------------------------------------------------------------


@bounded
@given(near(ports.MACHINE))
@example({})
@example({"ports": [{"key": "01:00.0", "netdevs": [{"name": "eth1", "more": 1}]}]})
@example({"ports": [{"netdevs": [{"hca": {"name": "mlx5_0", "gids": [{"index": "0"}, 3]}}]}], "other": [1]})
def test_any_machine_of_a_node_is_a_machine(reported: Any) -> None:
    machine = ports.from_dict(reported)
    assert ports.carries(machine, "192.0.2.1") is None or machine.netdevs
    for netdev in machine.netdevs:
        assert netdev.hca is None or netdev.hca.gid_for("192.0.2.1") is None or netdev.hca.gids
    again = json.loads(json.dumps(ports.to_dict(machine)))
    # As text, because a name that a node invented may be half of a surrogate pair.
    assert repr(ports.from_dict(again)) == repr(machine)


RESULTS = st.dictionaries(NAMES, st.dictionaries(NAMES, near(throughput._MEASURED), max_size=3) | JSON, max_size=3)


@bounded
@given(RESULTS, st.dictionaries(NAMES, st.floats(0, 400), max_size=3))
@example({"a": {"b": {"gbps": "fast"}, "c": {"error": ["x"]}}}, {"a": 200.0, "b": 200.0, "c": 200.0})
@example({"a": {"b": {"gbps": 1.0}, "c": {"gbps": 1.0}}}, {"a": 200.0, "b": 200.0, "c": 200.0})
@example({"a": {"b": {"error": "x" * 10**6}}}, {})
def test_any_measurements_are_sentences_or_none(measured: Any, rates: dict[str, float]) -> None:
    found = throughput.slow_links(measured, rates, 0.4, {("a", "b")})
    pairs = sum(len(targets) for targets in measured.values() if isinstance(targets, dict))
    assert len(found) <= 3 * pairs
    assert all(len(each) < 1000 for each in found)


# --- the journal -------------------------------------------------------------------------------------

LINES = near(ENTRY).map(json.dumps) | st.text(max_size=40) | st.sampled_from([DEEP, "{", f'{{"MESSAGE": {DEEP}'])


@bounded
@given(st.lists(LINES, max_size=5), st.booleans())
@example([json.dumps({**ENTRY, "__REALTIME_TIMESTAMP": float("inf")})], False)
@example([json.dumps({**ENTRY, "__REALTIME_TIMESTAMP": "9" * 400})], False)
@example([json.dumps({**ENTRY, "MESSAGE": [104, 300, -1, "x", True]})], True)
@example([DEEP, json.dumps(ENTRY)], False)
def test_any_words_of_a_journal_are_entries(lines: list[str], newest_first: bool) -> None:
    output = "\n".join(lines)
    entries = journal.parse_entries(output, newest_first=newest_first)
    for each in entries:
        assert each["text"].isprintable() or "\t" in each["text"]
    assert len(journal.merged({"a": entries})) == len(entries)
    for line in rank.parse_journal(output):
        assert isinstance(line.text, str)
        assert 0 <= line.time_s < 1e11


@bounded
@given(st.dictionaries(NAMES, near([REPORTED]), max_size=3))
@example({"a": [{"time_us": 2**70, "unit": 3}, 4, {}]})
@example({"a": [{**REPORTED, "unit": "\x1b[2J", "text": "\x1b]0;x\x07"}]})
def test_any_entries_of_nodes_are_lines_that_a_terminal_survives(reports: Any) -> None:
    for line in journal.merged(reports):
        assert "\x1b" not in line
        assert "\n" not in line


# --- files ---------------------------------------------------------------------------------------------


@bounded
@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()) | st.just(DEEP.encode()))
def test_any_file_is_an_object_or_an_empty_one(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    assert isinstance(files.read_json(path), dict)


def test_a_file_of_the_largest_size_is_read_and_a_larger_one_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 100)
    path = tmp_path / "a.json"
    for size, expected in ((100, {"a": 1}), (101, {})):
        path.write_text('{"a": 1}'.ljust(size), encoding="utf-8")
        assert files.read_json(path) == expected


def test_what_is_no_file_is_read_without_waiting_and_without_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, Path("/proc/self/mem"), tmp_path / "none"):
        assert files.read_json(path) == {}
