# SPDX-License-Identifier: Apache-2.0
"""What a container's first process may do, from /proc as the kernel writes it."""

from __future__ import annotations

from ansible_collections.gb10.cluster.plugins.module_utils._node.capabilities import (
    NAMES,
    decode,
    memlock_bytes,
    of_process,
    status_field,
)

#: Lines of /proc/<pid>/status of a container that has IPC_LOCK alone, and no new privileges.
STATUS = """\
Name:\tdocker-init
NSpid:\t4711\t1
CapInh:\t0000000000000000
CapPrm:\t0000000000004000
CapEff:\t0000000000004000
CapBnd:\t0000000000004000
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
"""
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units     
Max processes             unlimited            unlimited            processes 
Max open files            1048576              1048576              files     
Max locked memory         unlimited            unlimited            bytes     
"""  # noqa: W291 - as the kernel writes it
DEFAULT = LIMITS.replace("Max locked memory         unlimited ", "Max locked memory         8388608   ")


def test_numbers_are_the_kernels() -> None:
    assert len(NAMES) == 41
    assert [NAMES[number] for number in (12, 14, 21, 24, 40)] == [
        "NET_ADMIN", "IPC_LOCK", "SYS_ADMIN", "SYS_RESOURCE", "CHECKPOINT_RESTORE",
    ]  # fmt: skip
    assert decode("00000000a80425fb") >= {"CHOWN", "NET_RAW", "MKNOD"}  # Docker's default


def test_a_process_that_rdma_works_for() -> None:
    assert of_process(STATUS, LIMITS, ["uverbs1", "rdma_cm", "uverbs0"]) == {
        "capabilities": ["IPC_LOCK"],
        "no_new_privileges": True,
        "memlock_bytes": -1,
        "rdma_devices": ["uverbs0", "uverbs1"],
    }


def test_limits_and_lines_that_are_not_there() -> None:
    assert memlock_bytes(DEFAULT) == 8388608
    assert status_field(STATUS, "CapE") == ""
    assert of_process("", "", []) == {
        "capabilities": [], "no_new_privileges": False, "memlock_bytes": None, "rdma_devices": [],
    }  # fmt: skip
