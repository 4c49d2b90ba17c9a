# SPDX-License-Identifier: Apache-2.0
"""What a node may do, on hosts that hold more or less themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node.capabilities import NAMES, decode
from lab import capabilities, daemon
from lab.errors import LabError

ALL = "000001ffffffffff"
WITHOUT_SYS_RESOURCE = "000001fffeffffff"


def test_a_host_without_sys_resource() -> None:
    held = decode(WITHOUT_SYS_RESOURCE)
    assert set(NAMES) - held == {"SYS_RESOURCE"}
    granted = capabilities.for_node(held)
    assert "SYS_RESOURCE" not in granted
    assert set(granted) == set(capabilities.for_node(decode(ALL))) - {"SYS_RESOURCE"}


@pytest.mark.parametrize("mask", [ALL, WITHOUT_SYS_RESOURCE])
def test_no_node_can_touch_the_clock_or_the_kernel_of_its_host(mask: str) -> None:
    granted = capabilities.for_node(decode(mask))
    assert not {"SYS_TIME", "SYS_MODULE", "SYS_RAWIO", "MAC_ADMIN", "BPF"} & set(granted)


def test_an_engine_that_cannot_be_seen_is_asked_for_everything_useful() -> None:
    assert set(capabilities.for_node(None)) == {*capabilities.NEEDED, *capabilities.WELCOME}


def test_a_host_that_lacks_what_is_needed_is_refused_by_name() -> None:
    held = decode(ALL) - {"SYS_ADMIN", "MKNOD"}
    with pytest.raises(LabError, match="SYS_ADMIN, MKNOD"):
        capabilities.for_node(held)


def _process(proc: Path, pid: int, comm: str, mask: str, nspid: str) -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(comm + "\n", encoding="ascii")
    (proc / str(pid) / "status").write_text(
        f"Name:\t{comm}\nNSpid:\t{nspid}\nCapPrm:\t{ALL}\nCapBnd:\t{mask}\n", encoding="ascii"
    )


def test_the_hosts_engine_is_told_from_those_of_nodes(tmp_path: Path) -> None:
    _process(tmp_path, 1, "systemd", ALL, "1")
    _process(tmp_path, 50, "dockerd", "0000000000000000", "50\t7")
    _process(tmp_path, 90, "dockerd", WITHOUT_SYS_RESOURCE, "90")
    (tmp_path / "self").mkdir()
    assert daemon.held_capabilities(tmp_path) == decode(WITHOUT_SYS_RESOURCE)


def test_no_engine_in_sight(tmp_path: Path) -> None:
    _process(tmp_path, 50, "dockerd", ALL, "50\t7")
    assert daemon.held_capabilities(tmp_path) is None
