# SPDX-License-Identifier: Apache-2.0
"""What a process may do, from its files in /proc: capabilities, locked memory, devices.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

#: Names of linux/capability.h without the ``CAP_`` prefix, by their number.
NAMES: tuple[str, ...] = tuple(
    """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()
)


def decode(mask_hex: str) -> frozenset[str]:
    """Return the capabilities in a mask of /proc/<pid>/status (hexadecimal), such as the value of ``CapEff:``."""
    mask = int(mask_hex, 16)
    return frozenset(name for number, name in enumerate(NAMES) if mask >> number & 1)


def status_field(proc_status: str, name: str) -> str:
    """Return the value of a line of /proc/<pid>/status; empty when there is none."""
    found = re.search(rf"^{re.escape(name)}:[ \t]*(.*)$", proc_status, re.MULTILINE)
    return found[1].strip() if found else ""


def memlock_bytes(proc_limits: str) -> int | None:
    """Return the soft limit of locked memory in /proc/<pid>/limits: bytes, -1 for unlimited, None without it."""
    found = re.search(r"^Max locked memory\s+(\d+|unlimited)\s", proc_limits, re.MULTILINE)
    if not found:
        return None
    return -1 if found[1] == "unlimited" else int(found[1])


def of_process(proc_status: str, proc_limits: str, devices: Iterable[str]) -> dict[str, Any]:
    """Return what a container's first process may do.

    :param proc_status: its /proc/<pid>/status; proc_limits: its /proc/<pid>/limits.
    :param devices: names below its /dev/infiniband.
    :returns: ``capabilities`` (sorted), ``no_new_privileges``, ``memlock_bytes``, ``rdma_devices`` (sorted).
    """
    mask = status_field(proc_status, "CapEff")
    return {
        "capabilities": sorted(decode(mask)) if mask else [],
        "no_new_privileges": status_field(proc_status, "NoNewPrivs") == "1",
        "memlock_bytes": memlock_bytes(proc_limits),
        "rdma_devices": sorted(name for name in devices if name.startswith("uverbs")),
    }
