# SPDX-License-Identifier: Apache-2.0
"""The one reader of the node's HCAs."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._fabric import rdma


def test_devices_and_their_active_ports(tmp_path: Path) -> None:
    for name, state in (("rocep1s0f0", "4: ACTIVE"), ("rocep1s0f1", "1: DOWN"), ("roceP2p1s0f0", "4: ACTIVE")):
        port = tmp_path / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
    (tmp_path / "rocep1s0f0" / "device" / "net" / "enp1s0f0np0").mkdir(parents=True)
    (tmp_path / "mlx5_9" / "ports" / "1").mkdir(parents=True)  # its state vanishes while it is read
    assert [(each.name, each.netdevs, [port.active for port in each.ports]) for each in rdma.devices(tmp_path)] == [
        ("mlx5_9", [], [False]),
        ("roceP2p1s0f0", [], [True]),
        ("rocep1s0f0", ["enp1s0f0np0"], [True]),
        ("rocep1s0f1", [], [False]),
    ]
    assert rdma.devices(tmp_path / "none") == []


def test_the_word_of_a_state() -> None:
    assert [rdma.parse_state(text) for text in ("4: ACTIVE\n", "DOWN", "")] == ["ACTIVE", "DOWN", ""]
