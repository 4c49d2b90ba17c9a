# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.kernel_settings on a directory that stands for /proc/sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.modules import kernel_settings

from .conftest import Run


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a kernel with three settings."""
    for name, value in {
        "vm/swappiness": "60\n",
        "net/ipv4/tcp_rmem": "4096\t131072\t6291456\n",
        "net/ipv4/conf/eth0.7/arp_ignore": "0\n",
    }.items():
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value, encoding="utf-8")
    monkeypatch.setattr(kernel_settings, "PROC_SYS", tmp_path / "proc")
    return tmp_path / "proc"


def test_file_and_kernel_are_set_once(proc: Path, tmp_path: Path, run_module: Run) -> None:
    path, values = str(tmp_path / "sysctl.d" / "90.conf"), {"vm.swappiness": 1, "net.ipv4.tcp_rmem": "4096 1 2"}
    result = run_module(kernel_settings, path=path, values=values)
    assert (result["changed"], result["file_changed"]) == (True, True)
    assert result["live_changed"] == ["net.ipv4.tcp_rmem", "vm.swappiness"]
    assert (proc / "vm/swappiness").read_text(encoding="utf-8") == "1"
    assert Path(path).read_text(encoding="utf-8").splitlines()[1:] == [
        "net.ipv4.tcp_rmem = 4096 1 2",
        "vm.swappiness = 1",
    ]
    assert run_module(kernel_settings, path=path, values=values)["changed"] is False


def test_a_value_that_somebody_changed_is_set_again(proc: Path, tmp_path: Path, run_module: Run) -> None:
    path = str(tmp_path / "90.conf")
    run_module(kernel_settings, path=path, values={"vm.swappiness": 1})
    (proc / "vm/swappiness").write_text("60\n", encoding="utf-8")
    result = run_module(kernel_settings, path=path, values={"vm.swappiness": 1})
    assert (result["changed"], result["file_changed"], result["live_changed"]) == (True, False, ["vm.swappiness"])


@pytest.mark.usefixtures("proc")
def test_white_space_is_no_difference(tmp_path: Path, run_module: Run) -> None:
    result = run_module(kernel_settings, path=str(tmp_path / "x"), values={"net.ipv4.tcp_rmem": "4096 131072  6291456"})
    assert result["live_changed"] == []


def test_a_slash_stands_for_the_dot_in_a_devices_name(proc: Path, tmp_path: Path, run_module: Run) -> None:
    run_module(kernel_settings, path=str(tmp_path / "x"), values={"net.ipv4.conf.eth0/7.arp_ignore": 1})
    assert (proc / "net/ipv4/conf/eth0.7/arp_ignore").read_text(encoding="utf-8") == "1"


def test_check_mode_changes_neither(proc: Path, tmp_path: Path, run_module: Run) -> None:
    result = run_module(kernel_settings, check=True, path=str(tmp_path / "x"), values={"vm.swappiness": 1})
    assert (result["changed"], (tmp_path / "x").exists()) == (True, False)
    assert (proc / "vm/swappiness").read_text(encoding="utf-8") == "60\n"
    assert result["diff"][1]["before"] == "vm.swappiness = 60\n"


def test_a_setting_that_the_kernel_has_not_is_named_before_anything_is_written(
    proc: Path, tmp_path: Path, run_module: Run
) -> None:
    result = run_module(kernel_settings, path=str(tmp_path / "x"), values={"vm.swappiness": 1, "vm.no_such": 1})
    assert "This kernel has no setting vm.no_such" in result["msg"]
    assert not (tmp_path / "x").exists()
    assert (proc / "vm/swappiness").read_text(encoding="utf-8") == "60\n"
