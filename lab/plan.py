# SPDX-License-Identifier: Apache-2.0
"""Names and addresses of a lab: pure functions of its name, size and subnets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Literal

from lab.errors import LabError

DEFAULT_NAME = "lab"
MAX_NODES = 8
NETS: tuple[Net, ...] = ("mgmt", "fabric")
Net = Literal["mgmt", "fabric"]

LABEL_LAB = "gb10.lab"
LABEL_NODE = "gb10.lab.node"
LABEL_NET = "gb10.lab.net"
LABEL_CONFIG = "gb10.lab.config"
LABEL_OWNER = "gb10.lab.owner"
#: What is in `.lab` beside the labs, each of which has a directory of its name.
_FILES = ("cache", "demo", "models", "standin", "wheels")
#: Value of LABEL_LAB on what several labs use together (images); no lab may have this name.
SHARED = "shared"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_FIRST_SUBNET = 210
_LAST_SUBNET = 255


@dataclass(frozen=True)
class SubnetPair:
    """The two /24 networks of a lab."""

    mgmt: IPv4Network
    fabric: IPv4Network

    def of(self, net: Net) -> IPv4Network:
        """Return the subnet of ``net``."""
        return self.mgmt if net == "mgmt" else self.fabric


@dataclass(frozen=True)
class NodePlan:
    """One node: number ``index`` (from 1), its host name, container and addresses."""

    index: int
    host: str
    container: str
    mgmt: IPv4Address
    fabric: IPv4Address

    def address(self, net: Net) -> IPv4Address:
        """Return the node's address on ``net``."""
        return self.mgmt if net == "mgmt" else self.fabric


def check_name(name: str) -> str:
    """Return ``name`` if a lab may be called that; raise LabError otherwise."""
    if not _NAME.fullmatch(name):
        raise LabError(
            f"A lab cannot be called {name!r}: use 1 to 32 lower-case letters, digits and hyphens, a letter first."
        )
    if name in (SHARED, *_FILES):
        raise LabError(f"A lab cannot be called {name!r}: files of the labs have that name. Choose another.")
    return name


def check_nodes(nodes: int) -> int:
    """Return ``nodes`` if it is a possible size (1 to 8); raise LabError otherwise."""
    if not 1 <= nodes <= MAX_NODES:
        raise LabError(f"A lab has 1 to {MAX_NODES} nodes, {nodes} were asked for.")
    return nodes


def subnet_candidates(name: str) -> list[SubnetPair]:
    """List the subnet pairs that lab ``name`` may use, best first.

    The default lab has exactly one, so that its inventory can be a file; the others share what follows it.
    """
    pairs = [
        SubnetPair(IPv4Network(f"10.{second}.0.0/24"), IPv4Network(f"10.{second + 1}.0.0/24"))
        for second in range(_FIRST_SUBNET, _LAST_SUBNET, 2)
    ]
    return pairs[:1] if name == DEFAULT_NAME else pairs[1:]


def choose_subnets(name: str, taken: Iterable[IPv4Network]) -> SubnetPair:
    """Return the first candidate pair of ``name`` that overlaps none of ``taken``; raise LabError if there is none."""
    used = [net for net in taken if net.prefixlen > 0]
    candidates = subnet_candidates(name)
    for pair in candidates:
        if not any(pair.mgmt.overlaps(net) or pair.fabric.overlaps(net) for net in used):
            return pair
    clashes = sorted(
        {str(net) for net in used for pair in candidates if pair.mgmt.overlaps(net) or pair.fabric.overlaps(net)}
    )
    first, last = candidates[0].mgmt, candidates[-1].fabric
    raise LabError(
        f"Lab {name!r} needs a free pair of /24 networks between {first} and {last}, but this host already uses "
        f"{', '.join(clashes)}. Remove that network or, if another lab holds it, take that lab down."
    )


def container_name(name: str, index: int) -> str:
    """Return the container name of node ``index`` of lab ``name``."""
    return f"{name}-gx10-{index}"


def in_use(statuses: Sequence[str], owners: Sequence[str]) -> bool:
    """Return whether somebody works with a lab, or may be starting it.

    statuses: of its nodes' containers, as Docker names them. owners: the ``.lab`` directories that it was started from.
    Nobody does once all nodes have ended, as after a restart of the host, or when no node runs and the clone is gone.
    """
    ended = bool(statuses) and all(status in ("exited", "dead") for status in statuses)
    clone_is_there = any(Path(owner).is_dir() for owner in owners if owner)
    return not ended and ("running" in statuses or clone_is_there)


def network_name(name: str, net: Net) -> str:
    """Return the Docker network that carries ``net`` of lab ``name``."""
    return f"{name}-{net}"


def volume_names(name: str, index: int) -> dict[str, str]:
    """Return the named volumes of a node as {mount point: volume name}."""
    stem = container_name(name, index)
    return {"/var/lib/docker": f"{stem}-docker", "/var/lib/containerd": f"{stem}-containerd"}


def plan_nodes(name: str, count: int, subnets: SubnetPair) -> list[NodePlan]:
    """Return the plan of nodes 1 to ``count``: node k has host part 10 + k on both networks."""
    check_nodes(count)
    return [
        NodePlan(
            index=k,
            host=f"gx10-{k}",
            container=container_name(name, k),
            mgmt=subnets.mgmt.network_address + 10 + k,
            fabric=subnets.fabric.network_address + 10 + k,
        )
        for k in range(1, count + 1)
    ]


def find_node(nodes: Iterable[NodePlan], word: str) -> NodePlan:
    """Return the node that ``word`` means (``gx10-2``, ``2`` or its container); raise LabError without."""
    known = list(nodes)
    for node in known:
        if word in (node.host, str(node.index), node.container):
            return node
    raise LabError(
        f"There is no node {word!r} in this lab; its nodes are {', '.join(n.host for n in known) or 'none'}."
    )
