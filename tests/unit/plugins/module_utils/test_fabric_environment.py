# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.environment import (
    FabricError,
    Record,
    check_engine,
    hcas,
    left_out,
    network_environment,
    parse_record,
    ring_environment,
)
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import Machine, parse_capture
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_environment import OF_THE_NODE

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "fabric"
RING = Record("ring", 3, ("enp1s0f0np0", "enP2p1s0f0np0", "enp1s0f1np1", "enP2p1s0f1np1"))


def load(name: str, addresses: dict[str, str] | None = None) -> Machine:
    """A captured machine, some of whose devices have another address, or none."""
    tree = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    links = json.loads(tree["ip"])
    for link in links:
        if link["ifname"] in (addresses or {}):
            address = (addresses or {})[link["ifname"]]
            link["addr_info"] = [{"local": address, "prefixlen": 24, "scope": "global"}] if address else []
    return parse_capture({**tree, "ip": json.dumps(links)})


def test_names_and_never_a_gid_index() -> None:
    env = network_environment(load("switch"), Record(), "192.168.100.11", "enp1s0f0np0")
    assert env["NCCL_SOCKET_IFNAME"] == "enp1s0f0np0"
    # Names that match exactly.
    assert env["NCCL_IB_HCA"] == "=rocep1s0f0,roceP2p1s0f0"
    assert env["UCX_NET_DEVICES"] == "rocep1s0f0:1,roceP2p1s0f0:1,enp1s0f0np0"
    assert env["VLLM_HOST_IP"] == "192.168.100.11"
    assert "NCCL_IB_GID_INDEX" not in env
    assert not any(name in env for name in ring_environment(RING))


def test_what_a_model_may_leave_out_is_what_a_node_sets() -> None:
    assert set(network_environment(load("switch"), Record(), "192.168.100.11", "enp1s0f0np0")) == set(OF_THE_NODE)


def test_without_rdma_nothing_names_it() -> None:
    env = network_environment(load("no_rdma"), Record(), "192.168.100.11", "enp1s0f0np0")
    assert not any(name in env for name in ("NCCL_IB_HCA", "UCX_NET_DEVICES"))


def test_only_hcas_that_work() -> None:
    assert hcas(load("one_twin_down"), Record()) == ["rocep1s0f0"]
    assert hcas(load("gid_missing"), Record()) == ["roceP2p1s0f0"]
    assert left_out(load("gid_missing"), Record()) == ["rocep1s0f0 (enp1s0f0np0) has no RoCE v2 GID for 192.168.100.11"]
    lost = load("switch", {"enP2p1s0f0np0": ""})
    assert hcas(lost, Record("switch", 2, ("enp1s0f0np0", "enP2p1s0f0np0"))) == ["rocep1s0f0"]
    assert left_out(lost, Record()) == ["roceP2p1s0f0 (enP2p1s0f0np0) has no IPv4 address"]


def test_a_port_outside_the_plan_is_not_used_although_it_works() -> None:
    ring = load("ring")
    assert len(hcas(ring, RING)) == 4
    # The second port leads to a NAS.
    record = Record("back_to_back", 2, ("enp1s0f0np0", "enP2p1s0f0np0"))
    assert hcas(ring, record) == ["rocep1s0f0", "roceP2p1s0f0"]
    assert left_out(ring, record) == [
        "rocep1s0f1 (enp1s0f1np1) is not a port of the cluster",
        "roceP2p1s0f1 (enP2p1s0f1np1) is not a port of the cluster",
    ]


def test_a_ring() -> None:
    env = network_environment(load("ring"), RING, "192.168.100.11", "gb10")
    assert env["NCCL_SOCKET_IFNAME"] == "gb10"
    assert env["NCCL_IB_HCA"] == "=rocep1s0f0,rocep1s0f1,roceP2p1s0f0,roceP2p1s0f1"
    assert {name: env[name] for name in ring_environment(RING)} == {
        "NCCL_IB_SUBNET_AWARE_ROUTING": "1",
        "NCCL_IB_MERGE_NICS": "0",
        "NCCL_NET_PLUGIN": "none",
    }
    assert "NCCL_ALGO" not in env
    assert ring_environment(Record("ring", 4))["NCCL_ALGO"] == "Ring"
    assert ring_environment(Record("switch", 4)) == {}


def test_engines_on_a_ring() -> None:
    check_engine(RING, "native", 3, {})
    check_engine(RING, "native", 3, {"NCCL_IB_MERGE_NICS": "0", "NCCL_DEBUG": "INFO"})
    check_engine(RING, "ray", 1, {})
    check_engine(Record("switch", 3), "ray", 3, {"NCCL_IB_MERGE_NICS": "1"})
    with pytest.raises(FabricError, match=r"Ray does not work on a ring .* Set engine: native"):
        check_engine(RING, "ray", 3, {})
    with pytest.raises(FabricError, match=r"NCCL_IB_MERGE_NICS=1 \(must be 0\)"):
        check_engine(RING, "native", 3, {"NCCL_IB_MERGE_NICS": "1"})
    with pytest.raises(FabricError, match=r"NCCL_ALGO=Tree \(must be Ring\)"):
        check_engine(Record("ring", 4), "native", 4, {"NCCL_ALGO": "Tree"})


def test_records() -> None:
    assert parse_record({}) == Record()
    data = {"topology": "ring", "nodes": 3, "netdevs": ["a", "b"], "more": 1}
    assert parse_record(data) == Record("ring", 3, ("a", "b"))
