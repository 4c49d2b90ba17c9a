# SPDX-License-Identifier: Apache-2.0
"""Which Linux capabilities a node gets: those it needs and that the host's Docker Engine holds."""

from __future__ import annotations

from ansible_collections.gb10.cluster.plugins.module_utils._node.capabilities import decode, status_field
from lab.errors import LabError

#: systemd, sshd and a nested Docker Engine do not work without these.
NEEDED: tuple[str, ...] = tuple(
    """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE
    NET_ADMIN NET_RAW SYS_CHROOT SYS_PTRACE SYS_ADMIN MKNOD AUDIT_WRITE SETFCAP
    """.split()
)

#: Granted where the host has them. SYS_RESOURCE lets a container in a node raise its memlock
#: limit and lower its OOM score; IPC_LOCK is asked for by RDMA containers.
#: Left out on purpose, because the node shares the host's kernel: SYS_TIME, SYS_MODULE, SYS_RAWIO,
#: MAC_ADMIN, MAC_OVERRIDE, WAKE_ALARM, BLOCK_SUSPEND, BPF, PERFMON.
WELCOME: tuple[str, ...] = tuple(
    """
    LINUX_IMMUTABLE NET_BROADCAST IPC_LOCK IPC_OWNER SYS_PACCT SYS_BOOT SYS_NICE SYS_RESOURCE
    SYS_TTY_CONFIG LEASE AUDIT_CONTROL SYSLOG AUDIT_READ
    """.split()
)


def bounding_set(proc_status: str) -> frozenset[str]:
    """Return the bounding set in the text of a /proc/<pid>/status; raise LabError without one."""
    mask = status_field(proc_status, "CapBnd")
    if not mask:
        raise LabError("A /proc/<pid>/status of the Docker Engine has no CapBnd line.")
    return decode(mask)


def in_inner_namespace(proc_status: str) -> bool:
    """Return, from /proc/<pid>/status, whether the process lives in a PID namespace below the reader's."""
    for line in proc_status.splitlines():
        key, _unused, value = line.partition(":")
        if key == "NSpid":
            return len(value.split()) > 1
    return False


def for_node(held: frozenset[str] | None) -> list[str]:
    """Return the capabilities to grant to a node.

    held: bounding set of the process that starts containers, or None where it cannot be seen
    (a Docker Engine in a virtual machine); then all that a node can use are asked for.
    Raises LabError naming those that are missing and needed.
    """
    if held is None:
        return [*NEEDED, *WELCOME]
    missing = [name for name in NEEDED if name not in held]
    if missing:
        raise LabError(
            f"This host's Docker Engine does not have the capabilities {', '.join(missing)}, and a node with "
            "systemd and its own Docker Engine needs them. Run the lab on a host whose root has them."
        )
    return [*NEEDED, *(name for name in WELCOME if name in held)]
