# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.edge_firewall against a node whose nft, ip, ss and systemd note what they are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._node import rollback
from ansible_collections.gb10.cluster.plugins.modules import edge_firewall

SERVICE = "gb10-firewall-rollback.service"

ADDRESSES = json.dumps(
    [
        {"ifname": "eth0", "addr_info": [{"local": "10.0.0.5", "scope": "global"}]},
        {"ifname": "eth1", "addr_info": [{"local": "192.168.100.1", "scope": "global"}]},
    ]
)
ARGUMENTS = {
    "fabric_address": "192.168.100.1",
    "management_address": "10.0.0.5",
    "members": ["192.168.100.1", "192.168.100.2"],
    "open_ports": [8000],
}


class Machine:
    """A node with a table in its kernel, which may refuse what it is given."""

    def __init__(self) -> None:
        self.table = ""
        self.asked: list[str] = []
        self.refuses = ""
        self.no_timer = False
        self.ssh = 'LISTEN 0 128 0.0.0.0:2222 0.0.0.0:* users:(("sshd",pid=7,fd=3))'
        self.enabled = False
        self.listening = 'tcp LISTEN 0 50 *:445 *:* users:(("smbd",pid=9,fd=2))\ntcp LISTEN 0 5 *:8000 *:*\n'

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command."""
        words = [Path(command[0]).name, *command[1:]]
        self.asked.append(" ".join(words))
        if words[0] == "ip":
            return 0, ADDRESSES if "address" in words else '[{"dev": "eth0"}]', ""
        if words[0] == "ss":
            return 0, self.ssh if words[1] == "-Hltnp" else self.listening, ""
        if words[0] == "docker":
            network = {"Id": "0123456789abcdef", "Driver": "bridge"}
            return 0, "0123456789abcdef\n" if words[2] == "ls" else json.dumps([network]), ""
        if words == ["systemctl", "is-active", "ufw.service"]:
            return 0, "active\n", ""
        if words[0] == "nft" and "list" in words:
            return (0, self.table, "") if self.table else (1, "", "No such file or directory")
        if words[0] == "nft" and words[1] in ("--check", "-f"):
            if self.refuses == words[1]:
                return 1, "", f"{words[2]}:9:3-10: Error: syntax error\n"
            if words[1] == "-f":
                self.table = Path(words[2]).read_text(encoding="utf-8").split("delete table inet gb10\n")[1]
            return 0, "", ""
        if words[0] == "nft":
            self.table = ""
        if words[0] == "systemd-run" and self.no_timer:
            return 1, "", "Failed to start transient timer unit"
        if words[:2] == ["systemctl", "enable"] and words[-1] == "gb10-firewall.service":
            self.enabled = True
        if words[:2] == ["systemctl", "is-enabled"]:
            return 0, "enabled\n" if self.enabled else "disabled\n", ""
        if words == ["systemctl", "start", SERVICE]:
            if self.refuses == "back":
                return 3, "", f"Job for {SERVICE} failed.\n"
            (edge_firewall.DIRECTORY / "pending").rename(edge_firewall.DIRECTORY / "rolled-back")
        return 0, "", ""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Stand a node in for this machine."""
    made = Machine()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, **_rest: f"/usr/sbin/{name}")
    for name, place in (
        ("KEPT", "etc/firewall.nft"), ("PENDING", "var/pending.nft"), ("LIVE", "var/live"), ("DIRECTORY", "var"),
        ("UNIT", "units/gb10-firewall.service"),
    ):  # fmt: skip
        monkeypatch.setattr(edge_firewall, name, tmp_path / place)
    monkeypatch.setattr(rollback, "UNITS", tmp_path / "units")
    (tmp_path / "units").mkdir()
    return made


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    with patch_module_args(arguments), pytest.raises(SystemExit):
        edge_firewall.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_table_is_loaded_kept_and_then_left_alone(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    first = call(capsys, **ARGUMENTS)
    assert (first["changed"], first["pending"]) == (True, True)
    assert first["fabric"] == {
        "devices": ["eth1"],
        "closed": ["eth1"],
        "addresses": ["192.168.100.1"],
        "ssh_ports": first["fabric"]["ssh_ports"],
    }
    assert 2222 in first["fabric"]["ssh_ports"]
    assert 'iifname { "eth1" } ip saddr { 192.168.100.1, 192.168.100.2 } accept' in machine.table
    assert 'iifname != { "eth1" } tcp dport { 8000 } accept' in machine.table
    # Judged first, then the way back, then the table; nothing is kept for the next boot yet.
    order = [next(place for place, said in enumerate(machine.asked) if said.startswith(word)) for word in
             ("nft --check", "systemd-run", "nft -f")]  # fmt: skip
    assert order == sorted(order)
    assert not edge_firewall.KEPT.exists()
    assert "systemctl enable --quiet gb10-firewall.service" not in machine.asked
    # A node that boots before the confirmation rolls back as well.
    assert f"systemctl enable --quiet {SERVICE}" in machine.asked

    kept = call(capsys, state="confirmed")
    assert (kept["changed"], kept["pending"]) == (False, False)
    assert "delete table inet gb10" in edge_firewall.KEPT.read_text()
    assert machine.enabled
    assert "systemctl stop gb10-firewall-rollback-timer.timer" in machine.asked

    assert call(capsys, **ARGUMENTS)["changed"] is False
    # Confirming what is confirmed is no error.
    assert "failed" not in call(capsys, state="confirmed")


def test_a_table_that_somebody_altered_is_put_right(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, **ARGUMENTS)
    call(capsys, state="confirmed")
    before = machine.table
    for altered in (before.replace("8000", "8001"), ""):
        machine.table = altered
        again = call(capsys, **ARGUMENTS)
        assert again["changed"]
        assert "not loaded as it was written" in again["diff"]["before"]
        assert machine.table == before
        call(capsys, state="confirmed")
    machine.enabled = False
    assert call(capsys, **ARGUMENTS)["changed"]


def test_check_mode_judges_and_changes_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    told = call(capsys, **ARGUMENTS, _ansible_check_mode=True)
    assert told["changed"]
    assert "tcp dport { 8000 }" in told["diff"]["after"]
    assert not [said for said in machine.asked if said.startswith(("nft -f", "systemd-run", "systemctl e"))]
    assert not edge_firewall.PENDING.exists()
    machine.refuses = "--check"
    assert "nft refuses the table" in call(capsys, **ARGUMENTS, _ansible_check_mode=True)["msg"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"refuses": "--check"}, "nft refuses the table, nothing was changed: line 9: Error: syntax error"),
        ({"refuses": "-f"}, "nft did not load the table, nothing was changed: line 9: Error: syntax error"),
        ({"no_timer": True}, "The automatic rollback could not be prepared, nothing was changed: Failed to start"),
    ],
)
def test_what_cannot_be_done_leaves_all_as_it_was(
    machine: Machine, capsys: pytest.CaptureFixture[str], fault: dict[str, Any], said: str
) -> None:
    for name, value in fault.items():
        setattr(machine, name, value)
    failed = call(capsys, **ARGUMENTS)
    assert failed["failed"]
    assert said in failed["msg"]
    assert machine.table == ""
    assert not edge_firewall.KEPT.exists()
    assert not edge_firewall.PENDING.exists()


def test_no_ssh_no_table(machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    machine.ssh = ""
    monkeypatch.setattr(edge_firewall, "connection_port", lambda _environ: 0)
    failed = call(capsys, **ARGUMENTS)
    assert "would lock everybody out" in failed["msg"]
    assert failed["msg"].endswith("Nothing was changed.")
    assert machine.table == ""


def test_the_port_of_this_very_connection_stays_open(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.ssh = ""
    monkeypatch.setattr(edge_firewall, "connection_port", lambda _environ: 22022)
    call(capsys, **ARGUMENTS)
    assert "tcp dport { 22022 } accept" in machine.table


def test_rolling_back(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, state="rolled_back")["changed"] is False
    call(capsys, **ARGUMENTS)
    assert call(capsys, state="rolled_back", _ansible_check_mode=True)["changed"] is True
    assert call(capsys, state="rolled_back")["changed"] is True
    assert f"systemctl start {SERVICE}" in machine.asked
    # The timer was faster than the control node.
    late = call(capsys, state="confirmed")
    assert "before it could be confirmed" in late["msg"]
    call(capsys, **ARGUMENTS)
    machine.refuses = "back"
    stuck = call(capsys, state="rolled_back")
    assert f"was not rolled back on this node (Job for {SERVICE} failed.)" in stuck["msg"]
    assert f"`systemctl start {SERVICE}`" in stuck["msg"]
    # Nothing is built upon it.
    assert call(capsys, **ARGUMENTS)["failed"]
    machine.refuses = ""
    assert call(capsys, state="rolled_back")["changed"] is True


def test_taking_it_away(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, **ARGUMENTS)
    call(capsys, state="confirmed")
    assert call(capsys, state="absent", _ansible_check_mode=True)["changed"]
    assert machine.table
    assert call(capsys, state="absent")["changed"]
    assert machine.table == ""
    assert not edge_firewall.KEPT.exists()
    assert not edge_firewall.UNIT.exists()
    assert call(capsys, state="absent")["changed"] is False


def test_containers_reach_the_apis_port_alone(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, **ARGUMENTS, bridge_ports=[8000], bridges=["lxdbr0"])
    assert 'iifname "br-0123456789ab" tcp dport { 8000 } accept' in machine.table
    assert 'iifname "lxdbr0" tcp dport { 8000 } accept' in machine.table
    # A worker has no API, so Docker is not even asked.
    call(capsys, state="rolled_back")
    machine.asked.clear()
    call(capsys, **ARGUMENTS)
    assert "br-" not in machine.table
    assert not any(said.startswith("docker") for said in machine.asked)


def test_what_the_owner_has_is_named_before_it_is_closed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    read = call(capsys, **ARGUMENTS, state="read")
    assert read["owner"] == {"firewalls": ["ufw.service"], "closed": ["445/tcp (smbd)"]}
    call(capsys, **ARGUMENTS)
    call(capsys, state="confirmed")
    # The table is loaded; that the port is closed is no news.
    assert call(capsys, **ARGUMENTS, state="read")["owner"]["closed"] == []
    assert machine.table
