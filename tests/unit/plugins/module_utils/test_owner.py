# SPDX-License-Identifier: Apache-2.0
"""The plan of what belongs to a machine's owner."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._node import owner

WANTED: dict[str, Any] = {
    "hostname": "",
    "docker": True,
    "docker_restart": "auto",
    "log_driver": "json-file",
    "replace_log_driver": False,
    "allow_snap_docker": False,
    "stop_desktop": True,
    "allow_session_end": False,
    "firewall": True,
    "allow_closed_services": False,
    "operator": "",
}


def plan(facts: dict[str, Any], **wanted: Any) -> tuple[str, list[str]]:
    """Return the plan as text and the sentences of what is refused."""
    lines = owner.owner_plan(facts, {**WANTED, **wanted})
    return "\n".join(owner.text_lines(lines)), owner.harms(lines)


def test_a_machine_with_nothing_needs_no_plan() -> None:
    assert owner.owner_plan({"hostname": "spark-1", "services": {}}, WANTED) == []


@pytest.mark.parametrize(
    ("facts", "allow", "sign"),
    [
        ({"desktop_sessions": ["ann"]}, "allow_session_end", "desktop session (ann)"),
        ({"services": {"Samba": ["smbd.service"]}}, "allow_closed_services", "Samba: smbd.service"),
        ({"services": {"VPN": ["tailscaled.service"]}}, "allow_closed_services", "VPN: tailscaled.service"),
        ({"services": {"remote desktop": ["xrdp.service"]}}, "allow_closed_services", "xrdp.service"),
        ({"services": {"snap Docker": ["snap.docker.dockerd.service"]}}, "allow_snap_docker", "snap Docker"),
    ],
)
def test_each_harm_is_refused_until_its_own_variable_allows_it(facts: dict[str, Any], allow: str, sign: str) -> None:
    _text, refused = plan(facts)
    assert len(refused) == 1
    assert sign in refused[0]
    assert f"host_{allow}: true" in refused[0]
    others = {name: True for name in WANTED if name.startswith("allow_") and name != allow}
    assert len(plan(facts, **others)[1]) == 1
    assert plan(facts, **{allow: True})[1] == []


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({"desktop_sessions": ["ann"]}, {"stop_desktop": False}),
        ({"services": {"Samba": ["smbd.service"]}}, {"firewall": False}),
        ({"services": {"snap Docker": ["snap.docker.dockerd.service"]}}, {"docker": False}),
    ],
)
def test_what_the_roles_do_not_touch_is_shown_and_not_refused(facts: dict[str, Any], wanted: dict[str, Any]) -> None:
    text, refused = plan(facts, **wanted)
    assert refused == []
    assert "kept" in text


def test_containers_and_settings_of_docker() -> None:
    facts = {"containers": ["db", "jupyter"], "log_driver": "journald", "daemon_keys": ["runtimes", "log-driver"]}
    text, refused = plan(facts)
    assert refused == []
    assert "containers: db, jupyter: kept running; a setting that needs a restart of Docker waits" in text
    assert "Docker log driver: journald: kept, with its options" in text
    assert "Docker settings: log-driver, runtimes: kept; ours are merged" in text
    text, _refused = plan(facts, docker_restart="always", replace_log_driver=True)
    assert "restarted together with Docker" in text
    assert "replaced by json-file" in text


def test_names_accounts_networks_and_ports() -> None:
    facts = {
        "hostname": "spark-1a2b",
        "accounts": ["ann", "ops"],
        "networks": ["/etc/netplan/50-cloud-init.yaml"],
        "listeners": ["0.0.0.0:445 (smbd)"],
        "services": {"firewall": ["ufw.service"]},
    }
    text, refused = plan(facts, hostname="gx10-1", operator="ops")
    assert refused == []
    for line in (
        "host name: spark-1a2b: changed to gx10-1",
        "accounts: ann: kept",
        "accounts: ops: kept; our keys are added",
        "network definitions: /etc/netplan/50-cloud-init.yaml: kept",
        "listening ports: 0.0.0.0:445 (smbd): closed to other machines by role edge",
        "firewall: firewall: ufw.service: kept beside ours",
    ):
        assert line in text
    assert "host name" not in plan(facts)[0]
    assert "host name" not in plan(facts, hostname="spark-1a2b")[0]


def test_what_is_refused_comes_first() -> None:
    text, _refused = plan({"accounts": ["ann"], "desktop_sessions": ["ann"]})
    assert text.startswith("REFUSED desktop session")


@pytest.mark.parametrize(
    ("session", "users"),
    [
        ({"Name": "ann", "Type": "wayland", "Class": "user", "State": "active"}, ["ann"]),
        ({"Name": "ann", "Type": "x11", "Class": "user", "State": "online"}, ["ann"]),
        ({"Name": "gdm", "Type": "wayland", "Class": "greeter", "State": "active"}, []),
        ({"Name": "ann", "Type": "tty", "Class": "user", "State": "active"}, []),
        ({"Name": "ann", "Type": "x11", "Class": "user", "State": "closing"}, []),
    ],
)
def test_who_is_logged_in_to_a_desktop(session: dict[str, str], users: list[str]) -> None:
    assert owner.desktop_sessions([session, session]) == users


def test_services_by_their_units() -> None:
    units = ["smbd.service", "wg-quick@wg0.service", "snap.lxd.daemon.service", "ssh.service", "docker.service"]
    assert owner.services(units) == {
        "Samba": ["smbd.service"],
        "VPN": ["wg-quick@wg0.service"],
        "LXD or Incus": ["snap.lxd.daemon.service"],
    }


def test_what_this_collection_created_is_not_the_owners() -> None:
    assert [name for name in ("vllm-a", "gb10-keep-vllm-1", "db", "my-gb10") if not owner.is_ours(name)] == [
        "db",
        "my-gb10",
    ]
    names = ["/etc/netplan/90-gb10-fabric.yaml", "/etc/netplan/50-cloud-init.yaml"]
    assert owner.foreign_definitions(names) == ["/etc/netplan/50-cloud-init.yaml"]
