# SPDX-License-Identifier: Apache-2.0
"""The collector of the monitor role: from sysfs, systemd and the project's own files to Prometheus' text form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._monitor import collect as collector
from ansible_collections.gb10.cluster.plugins.module_utils._node import files

RECORD: dict[str, Any] = {
    "model": "some397",
    "unit": "vllm-some397.service",
    "served_name": "qwen/397",
    "repo": "Qwen/Q",
    "members": ["gx10-1", "gx10-2"],
}


def lines(fill: Any, *arguments: Any) -> list[str]:
    """Return the samples that a function adds."""
    figures = collector.Figures()
    fill(figures, *arguments)
    return [line for line in figures.text().splitlines() if line and not line.startswith("#")]


def put(root: Path, files: dict[str, str]) -> Path:
    """Write files below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    return root


def test_labels_are_escaped_and_each_metric_is_described_once() -> None:
    figures = collector.Figures()
    figures.add("gb10_disk_free_bytes", 1, path='a"b\\c\nd')
    figures.add("gb10_disk_free_bytes", 2, path="/")
    assert figures.text() == (
        "# HELP gb10_disk_free_bytes Free space of the file system that holds a path.\n"
        "# TYPE gb10_disk_free_bytes gauge\n"
        'gb10_disk_free_bytes{path="a\\"b\\\\c\\nd"} 1.0\n'
        'gb10_disk_free_bytes{path="/"} 2.0\n'
    )


def test_big_counters_keep_every_digit() -> None:
    figures = collector.Figures()
    figures.add("gb10_fabric_bytes_total", 2**53 - 1)
    assert "gb10_fabric_bytes_total 9007199254740991.0\n" in figures.text()


def test_a_rank_is_told_with_its_model() -> None:
    found = lines(collector.engine, RECORD, "gx10-2", {"ActiveState": "active", "NRestarts": "3"})
    assert found == [
        'gb10_engine_active_info{model="some397",served_name="qwen/397",repo="Qwen/Q",rank="1",ranks="2"} 1.0',
        'gb10_engine_rank_up{model="some397",rank="1"} 1.0',
        'gb10_engine_rank_restarts{model="some397",rank="1"} 3.0',
    ]


@pytest.mark.parametrize("state", ["inactive", "failed", "activating", ""])
def test_a_unit_that_is_not_active_is_down(state: str) -> None:
    assert 'gb10_engine_rank_up{model="some397",rank="0"} 0.0' in lines(
        collector.engine, RECORD, "gx10-1", {"ActiveState": state}
    )


def test_a_node_without_a_rank_tells_nothing_of_the_engine() -> None:
    assert lines(collector.engine, RECORD, "gx10-3", {}) == []
    assert lines(collector.engine, {}, "gx10-1", {}) == []


def test_the_watch_state_is_one_of_the_known_ones() -> None:
    found = lines(collector.watch, {"state": "wedged", "since": 1763726400, "looked": 1763726500.5}, 1763726510.0)
    assert 'gb10_watch_state{state="wedged"} 1.0' in found
    assert 'gb10_watch_state{state="ready"} 0.0' in found
    assert "gb10_watch_since_seconds 1763726400.0" in found
    assert "gb10_watch_looked_seconds 1763726500.5" in found
    assert sum(line.endswith(" 1.0") for line in found) == 2


def test_a_word_that_the_watch_does_not_know_is_unknown_not_lost() -> None:
    assert 'gb10_watch_state{state="unknown"} 1.0' in lines(collector.watch, {"state": "puzzled"}, 0.0)


def test_a_state_that_was_not_looked_at_for_long_is_unknown() -> None:
    state = {"state": "ready", "since": 1.0, "looked": 100.0}
    assert 'gb10_watch_state{state="ready"} 1.0' in lines(collector.watch, state, 100.0 + collector.WATCH_OLD_S)
    found = lines(collector.watch, state, 101.0 + collector.WATCH_OLD_S)
    assert 'gb10_watch_state{state="ready"} 0.0' in found
    assert 'gb10_watch_state{state="unknown"} 1.0' in found


def test_a_time_may_be_seconds_or_iso() -> None:
    assert collector.since_seconds("2025-11-21T12:00:00+00:00") == 1763726400.0
    assert collector.since_seconds(5) == 5.0
    assert collector.since_seconds("yesterday") is None
    assert collector.since_seconds(True) is None
    assert collector.since_seconds(None) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"ready"'])
def test_an_absent_or_damaged_watch_is_told_as_absent(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    assert lines(collector.watch, files.read_json(path), 0.0) == ["gb10_watch_present 0.0"]
    path.write_text(text, encoding="ascii")
    assert lines(collector.watch, files.read_json(path), 0.0) == ["gb10_watch_present 0.0"]


def test_rdma_ports_are_read_in_words_of_four_bytes(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        {
            "rocep1s0f0/ports/1/state": "4: ACTIVE",
            "rocep1s0f0/ports/1/counters/port_rcv_data": "1000",
            "rocep1s0f0/ports/1/counters/port_xmit_data": "500",
            "rocep1s0f0/ports/1/counters/link_downed": "2",
            "rocep1s0f0/ports/1/hw_counters/np_cnp_sent": "7",
            "rocep1s0f0/ports/1/hw_counters/duplicate_request": "9",
            "rocep1s0f0/device/net/enp1s0f0np0/carrier": "1",
            "rocep1s0f1/ports/1/state": "1: DOWN",
            "rocep1s0f1/ports/1/counters/port_rcv_data": "N/A (no PMA)",
        },
    )
    figures = collector.Figures()
    assert collector.rdma_ports(figures, root) == ["enp1s0f0np0"]
    found = figures.text().splitlines()
    port = 'device="rocep1s0f0",kind="rdma",port="1"'
    assert f"gb10_fabric_link_up{{{port}}} 1.0" in found
    assert 'gb10_fabric_link_up{device="rocep1s0f1",kind="rdma",port="1"} 0.0' in found
    assert f'gb10_fabric_bytes_total{{{port},direction="in"}} 4000.0' in found
    assert f'gb10_fabric_bytes_total{{{port},direction="out"}} 2000.0' in found
    assert 'gb10_rdma_events_total{device="rocep1s0f0",port="1",event="link_downed"} 2.0' in found
    assert 'gb10_rdma_events_total{device="rocep1s0f0",port="1",event="np_cnp_sent"} 7.0' in found
    assert not [line for line in found if "duplicate_request" in line or "N/A" in line]
    assert not [line for line in found if "rocep1s0f1" in line and "bytes" in line]


def test_without_rdma_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert collector.rdma_ports(collector.Figures(), tmp_path / "absent") == []


def test_a_network_device_is_told_once_and_without_carrier_it_is_down(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        {
            "eth1/carrier": "1",
            "eth1/statistics/rx_bytes": "10",
            "eth1/statistics/tx_bytes": "20",
            "eth2/statistics/rx_bytes": "1",
        },
    )
    found = lines(collector.netdevs, root, ["eth1", "eth1", "eth2"])
    assert found.count('gb10_fabric_link_up{device="eth1",kind="netdev",port="1"} 1.0') == 1
    assert 'gb10_fabric_link_up{device="eth2",kind="netdev",port="1"} 0.0' in found
    assert 'gb10_fabric_bytes_total{device="eth1",kind="netdev",port="1",direction="out"} 20.0' in found


def test_the_devices_of_the_fabric_are_those_with_its_addresses() -> None:
    listing: list[dict[str, Any]] = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}]},
        {"ifname": "eth1", "addr_info": [{"local": "fe80::1"}, {"local": "10.211.0.11"}]},
        {"ifname": "eth2"},
    ]
    assert collector.holders(["10.211.0.11"], listing) == ["eth1"]


def test_each_file_system_is_told_once_and_a_path_may_be_missing(tmp_path: Path) -> None:
    found = lines(collector.disks, [str(tmp_path), str(tmp_path / "not" / "there")])
    assert [line.split("{")[0] for line in found] == ["gb10_disk_free_bytes", "gb10_disk_size_bytes"]
    assert f'path="{tmp_path}"' in found[0]


def test_what_is_on_its_way_is_counted_as_it_is_allocated(tmp_path: Path) -> None:
    folder = tmp_path / ".incoming" / "a" / "b"
    folder.mkdir(parents=True)
    with (folder / "shard").open("wb") as shard:
        shard.truncate(50 * 2**20)
        shard.write(b"x" * 8192)
    assert 8192 <= files.used_bytes(tmp_path / ".incoming") < 2**20
    assert files.used_bytes(tmp_path / "absent") == 0


def test_systemd_that_cannot_be_asked_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert collector.unit_properties("x.service", "ActiveState") == {}
    assert collector.addresses_json() == []


def test_a_whole_file_is_written_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "addresses_json", lambda: [{"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}]}])
    monkeypatch.setattr(collector, "unit_properties", lambda *_given: {"ActiveState": "active", "NRestarts": "0"})
    (tmp_path / "active.json").write_text(json.dumps(RECORD), encoding="ascii")
    told = {
        "node": "gx10-1",
        "target": str(tmp_path / "gb10.prom"),
        "interval_seconds": 1,
        "memory_floor_gib": 6.0,
        "disk_floor_gib": 20,
        "disk_paths": ["/"],
        "fabric_addresses": ["127.0.0.1"],
        "infiniband": str(tmp_path / "infiniband"),
        "weights_root": str(tmp_path),
        "active": str(tmp_path / "active.json"),
        "watch": str(tmp_path / "state.json"),
        "transfer_units": ["gb10-weights.service"],
    }
    (tmp_path / "collect.json").write_text(json.dumps(told), encoding="ascii")
    collector.main([str(tmp_path / "collect.json"), "--once"])
    text = (tmp_path / "gb10.prom").read_text(encoding="utf-8")
    assert f"gb10_limit_memory_floor_bytes {6.0 * 2**30}\n" in text
    assert 'gb10_transfer_unit_active{unit="gb10-weights.service"} 1.0' in text
    assert 'kind="netdev"' in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["active.json", "collect.json", "gb10.prom"]
    assert (tmp_path / "gb10.prom").stat().st_mode & 0o777 == 0o644
    sample = re.compile(r'^[a-z0-9_]+(\{([a-z_]+="[^"]*",?)+\})? -?[0-9.e+]+$')
    assert not [line for line in text.splitlines() if not line.startswith("#") and not sample.match(line)]
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} <= set(collector.HELP)
