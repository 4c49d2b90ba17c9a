# SPDX-License-Identifier: Apache-2.0
"""Cable the three nodes of the scenario's lab in a ring: one veth pair for each pair of nodes, ``right`` to ``left``.

A helper container on the host's network does it, so that it needs no more rights than the lab itself.
"""

from __future__ import annotations

import sys

import docker

LAB = "molecule-fabric"


def main() -> None:
    """Add the cables, and remove those of a run before."""
    client = docker.from_env()
    nodes = sorted(
        client.containers.list(filters={"label": [f"gb10.lab={LAB}", "gb10.lab.node"]}),
        key=lambda node: node.labels["gb10.lab.node"],
    )
    pids = [node.attrs["State"]["Pid"] for node in nodes]
    if len(pids) != 3:
        sys.exit(f"{LAB} has {len(pids)} nodes, a ring of three was wanted")
    lines = [f"nsenter --net --target {pid} ip link delete right 2>/dev/null || true" for pid in pids]
    lines += [
        f"ip link add name right netns {one} mtu 9000 type veth peer name left netns {other} mtu 9000"
        for one, other in zip(pids, pids[1:] + pids[:1], strict=True)
    ]
    client.containers.run(
        str(nodes[0].attrs["Image"]),
        ["-euc", "\n".join(lines)],
        entrypoint="/bin/sh",
        cap_add=["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"],
        network_mode="host",
        pid_mode="host",
        remove=True,
        labels={"gb10.lab": LAB},
    )


if __name__ == "__main__":
    main()
