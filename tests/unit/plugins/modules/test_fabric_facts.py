# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.fabric_facts: a machine's sysfs is read as it is, and the module says what it finds there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._fabric import capture
from ansible_collections.gb10.cluster.plugins.modules import fabric_facts

FIXTURES = Path(__file__).parents[2] / "fixtures/fabric"


def fixture(name: str) -> dict[str, str]:
    """Return a captured machine."""
    found: dict[str, str] = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    return found


def build(tree: dict[str, str], root: Path) -> None:
    """Make a sysfs of a capture: devices are symbolic links, as the kernel has them."""
    links = {key: text for key, text in tree.items() if key.endswith(("/device", "/device/driver")) and "/" in text}
    for key, text in sorted(links.items()):
        target = root / text.removeprefix("/sys/")
        target.mkdir(parents=True, exist_ok=True)
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).symlink_to(os.path.relpath(target, (root / key).parent.resolve()))
    for key, text in tree.items():
        path = root / key
        if key.startswith("class/") and key not in links:
            path.parent.mkdir(parents=True, exist_ok=True)
            if text or "infiniband" not in path.parent.name:
                path.write_text(text + "\n", encoding="utf-8")
            else:
                path.mkdir(exist_ok=True)


@pytest.mark.parametrize("name", ["switch", "ring", "one_twin_down", "no_rdma", "boxed"])
def test_sysfs_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    wanted = {key: text for key, text in fixture(name).items() if key.startswith("class/")}
    build(wanted, tmp_path)
    found = {key: text.replace(str(tmp_path), "/sys") for key, text in capture.sysfs(tmp_path).items()}
    assert found == wanted


def test_a_command_that_fails_has_no_output() -> None:
    assert capture.output("sh", "-c", "echo x; exit 3") == ""
    assert capture.output("no-such-command-anywhere") == ""
    assert capture.output("echo", "x") == "x\n"


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tree: dict[str, str], **arguments: Any
) -> dict[str, Any]:
    """Run the module on a captured machine."""
    monkeypatch.setattr(fabric_facts, "collect", lambda: {"meminfo": "", **tree})
    with patch_module_args(arguments), pytest.raises(SystemExit):
        fabric_facts.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_sound_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = call(capsys, monkeypatch, fixture("switch"))
    assert told["findings"] == []
    assert [each["name"] for each in told["machine"]["ports"][0]["netdevs"]] == ["enp1s0f0np0", "enP2p1s0f0np0"]
    assert "capture" not in told
    assert call(capsys, monkeypatch, fixture("switch"), capture=True)["capture"] == fixture("switch")


def test_what_is_asked_for_decides(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    slow = call(capsys, monkeypatch, fixture("negotiated_100g"))["findings"]
    assert {each["level"] for each in slow} == {"WARN"}
    assert call(capsys, monkeypatch, fixture("negotiated_100g"), speed_mbps=0)["findings"] == []
    assert call(capsys, monkeypatch, fixture("no_rdma"), rdma=False)["findings"] == []
    [named] = call(capsys, monkeypatch, fixture("switch"), interfaces=["enP7s7"], mtu=0, speed_mbps=0, rdma=False)[
        "machine"
    ]["ports"]
    assert named["key"] == "enP7s7"


def test_the_kexec_handover_fault(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = "MemTotal: 100 kB\nCmaTotal: 65536 kB\nCmaFree: 70000 kB\n"
    [fault] = call(capsys, monkeypatch, {**fixture("switch"), "meminfo": meminfo})["findings"]
    assert "kho=off" in fault["remedy"]
