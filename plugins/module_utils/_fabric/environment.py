# SPDX-License-Identifier: Apache-2.0
"""What NCCL, Gloo, UCX and vLLM must know of this machine's fabric, as environment variables; pure.

The role fabric records on each node which of its ports belong to the cluster (`Record`, in `RECORD_PATH`); the engine
reads it at every start.  Names, addresses and GIDs are resolved anew each time, because they differ between nodes and
drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import Machine, Netdev

RECORD_PATH = Path("/etc/gb10/fabric.json")
RING = "ring"
#: NCCL on a ring: HCAs of different cables do not reach each other, and twins must not be merged into one device.
RING_ENVIRONMENT: Mapping[str, str] = {
    "NCCL_IB_SUBNET_AWARE_ROUTING": "1",
    "NCCL_IB_MERGE_NICS": "0",
    "NCCL_NET_PLUGIN": "none",
}
#: A ring has no direct cable between every two of this many nodes: only NCCL's ring algorithm keeps to the cables.
RING_ALGORITHM_NODES = 4


class FabricError(ValueError):
    """The engine cannot use this machine's fabric; the message says why and what to do."""


@dataclass(frozen=True)
class Record:
    """How this node takes part in the fabric.

    :param topology: ring, switch, back_to_back, or empty when it is not known.
    :param nodes: number of members; 0 when it is not known.
    :param netdevs: the ports that belong to the cluster; empty when they are not known.
    """

    topology: str = ""
    nodes: int = 0
    netdevs: tuple[str, ...] = ()


def parse_record(data: Mapping[str, Any]) -> Record:
    """Return the record from the JSON object that the role wrote; an empty one from an empty object."""
    return Record(
        topology=str(data.get("topology", "")),
        nodes=int(data.get("nodes", 0)),
        netdevs=tuple(map(str, data.get("netdevs", ()))),
    )


def usable(netdev: Netdev) -> bool:
    """Whether NCCL can use a device's HCA: linked, ACTIVE, and with a RoCE v2 GID for its IPv4 address."""
    return (
        netdev.carrier
        and netdev.hca is not None
        and netdev.hca.state == "ACTIVE"
        and any(netdev.hca.gid_for(address) for address in netdev.ipv4())
    )


def hcas(machine: Machine, record: Record) -> list[str]:
    """Return the names of the HCAs that NCCL may use: of the cluster's ports, and usable.

    A port that leads to a NAS, or has no address on the fabric, would hang NCCL without an error.  Without a record
    every usable port counts.
    """
    ours = [netdev for netdev in machine.netdevs if not record.netdevs or netdev.name in record.netdevs]
    return sorted((netdev.hca.name for netdev in ours if netdev.hca and usable(netdev)), key=str.lower)


def left_out(machine: Machine, record: Record) -> list[str]:
    """Return a phrase for each linked port with an active HCA that NCCL must not use."""
    used = set(hcas(machine, record))
    found = []
    for netdev in machine.netdevs:
        if netdev.hca is None or netdev.hca.name in used or not netdev.carrier or netdev.hca.state != "ACTIVE":
            continue
        if record.netdevs and netdev.name not in record.netdevs:
            why = "is not a port of the cluster"
        elif not netdev.ipv4():
            why = "has no IPv4 address"
        else:
            why = f"has no RoCE v2 GID for {', '.join(netdev.ipv4())}"
        found.append(f"{netdev.hca.name} ({netdev.name}) {why}")
    return found


def ring_environment(record: Record) -> dict[str, str]:
    """Return NCCL's settings for a ring; none for another topology."""
    if record.topology != RING:
        return {}
    more = {"NCCL_ALGO": "Ring"} if record.nodes >= RING_ALGORITHM_NODES else {}
    return {**RING_ENVIRONMENT, **more}


def network_environment(machine: Machine, record: Record, address: str, interface: str) -> dict[str, str]:
    """Return the variables that name this node's network to vLLM, NCCL, Gloo and UCX.

    NCCL_IB_GID_INDEX is never among them: the index drifts, and a wrong one is worse than none.  NCCL_IB_HCA begins
    with "=", for names that match exactly: without it "mlx5_1" also stands for "mlx5_10".

    :param machine: this machine's fabric ports.
    :param record: how it takes part in the fabric.
    :param address: its address on the fabric.
    :param interface: the device that has it; in a ring not one of the ports.
    """
    env = {
        "VLLM_HOST_IP": address,
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "TP_SOCKET_IFNAME": interface,
        "OMPI_MCA_btl_tcp_if_include": interface,
    }
    if names := hcas(machine, record):
        env["NCCL_IB_HCA"] = "=" + ",".join(names)
        env["UCX_NET_DEVICES"] = ",".join([*(f"{name}:1" for name in names), interface])
    return {**env, **ring_environment(record)}


def check_engine(record: Record, engine: str, nodes: int, env: Mapping[str, str]) -> None:
    """Refuse an engine that cannot work on this fabric.

    :param engine: ray or native.
    :param nodes: number of nodes that the model runs on.
    :param env: the engine's environment as the model's definition sets it.
    :raises FabricError: Ray on a ring, or a setting that contradicts what NCCL needs there.
    """
    if record.topology != RING or nodes < 2:
        return
    if engine == "ray":
        raise FabricError(
            "Ray does not work on a ring of nodes without a switch. Set engine: native in the model's definition, or "
            "connect the nodes by a switch."
        )
    wrong = [
        f"{name}={env[name]} (must be {value})"
        for name, value in ring_environment(record).items()
        if name in env and env[name] != value
    ]
    if wrong:
        raise FabricError(
            f"The fabric is a ring, and the model's environment contradicts what NCCL needs there: {', '.join(wrong)}. "
            "Remove the setting from model_spec.env."
        )
