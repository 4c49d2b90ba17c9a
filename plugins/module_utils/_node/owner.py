# SPDX-License-Identifier: Apache-2.0
"""What on a machine belongs to its owner, and what the roles would do to it.  Pure: facts in, lines of a plan out."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Names of containers, units and files that this collection creates.
OURS = ("vllm-*", "gb10-*", "ray-*")
#: Kind of service → units that show it.
SERVICES: Mapping[str, Sequence[str]] = {
    "firewall": ("ufw.service", "firewalld.service"),
    "snap Docker": ("snap.docker.*",),
    "libvirt": ("libvirtd.service", "virtqemud.service"),
    "LXD or Incus": ("snap.lxd.*", "lxd.service", "incus.service"),
    "Samba": ("smbd.service", "nmbd.service"),
    "NFS server": ("nfs-server.service", "nfs-kernel-server.service"),
    "remote desktop": ("xrdp.service", "gnome-remote-desktop.service", "vncserver*", "x11vnc*", "nxserver.service"),
    "VPN": ("wg-quick@*", "tailscaled.service", "openvpn*", "zerotier-one.service", "netbird.service"),
}
#: Services that wait for connections from other machines and are unreachable once the firewall is on.
INBOUND = ("Samba", "NFS server", "remote desktop", "VPN", "LXD or Incus", "libvirt")


@dataclass(frozen=True)
class Line:
    """One thing of the owner's: what it is, what happens to it, and which variable allows harm to it."""

    kind: str
    what: str
    fate: str
    #: Name and value of the variable that allows it; empty where nothing is harmed.
    allow: str = ""


def desktop_sessions(sessions: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the users who are logged in to a desktop, sorted; the greeter is nobody's session."""
    return sorted(
        {
            each.get("Name", "?")
            for each in sessions
            if each.get("Class", "user").startswith("user")
            and each.get("Type") in ("x11", "wayland", "mir")
            and each.get("State") != "closing"
        }
    )


def services(units: Iterable[str]) -> dict[str, list[str]]:
    """Return the kinds of the owner's services among active units, each with its units."""
    found: dict[str, list[str]] = {}
    for unit in sorted(units):
        for kind, patterns in SERVICES.items():
            if any(fnmatch.fnmatch(unit, pattern) for pattern in patterns):
                found.setdefault(kind, []).append(unit)
    return found


def is_ours(name: str) -> bool:
    """Return whether a container, unit or file name is one that this collection gives."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in OURS)


def foreign_definitions(names: Iterable[str]) -> list[str]:
    """Return the network definitions (paths) that are not of this collection, sorted."""
    return sorted(name for name in names if not re.search(r"(^|[-_])gb10", name.rsplit("/", 1)[-1]))


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _containers(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterable[Line]:
    containers = list(facts.get("containers", []))
    if containers:
        fate = (
            "restarted together with Docker when a setting needs it"
            if wanted.get("docker_restart") == "always"
            else "kept running; a setting that needs a restart of Docker waits until they have stopped "
            "(host_docker_restart: always restarts at once)"
        )
        yield Line("containers", _listed(containers), fate)
    driver = str(facts.get("log_driver", ""))
    if driver and driver != wanted.get("log_driver"):
        replaced = bool(wanted.get("replace_log_driver"))
        fate = f"replaced by {wanted.get('log_driver')}" if replaced else "kept, with its options"
        yield Line("Docker log driver", driver, f"{fate} (host_docker_replace_log_driver: {str(replaced).lower()})")
    if facts.get("daemon_keys"):
        yield Line("Docker settings", _listed(sorted(facts["daemon_keys"])), "kept; ours are merged into daemon.json")


def _sessions(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterable[Line]:
    desktop = list(facts.get("desktop_sessions", []))
    if not desktop:
        return
    if not wanted.get("stop_desktop"):
        yield Line("desktop session", _listed(desktop), "kept running until the next boot")
    elif wanted.get("allow_session_end"):
        yield Line("desktop session", _listed(desktop), "ended (host_allow_session_end: true)")
    else:
        yield Line(
            "desktop session",
            _listed(desktop),
            "would be ended, with unsaved work. Set host_allow_session_end: true to end it, "
            "or host_stop_desktop: false to keep it until the next boot",
            "host_allow_session_end: true",
        )


def _reachable(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterable[Line]:
    found: Mapping[str, Sequence[str]] = facts.get("services", {})
    for kind, units in found.items():
        what = f"{kind}: {_listed(list(units))}"
        if kind == "firewall" and wanted.get("firewall"):
            yield Line("firewall", what, "kept beside ours: both must accept a connection")
        elif kind == "snap Docker" and wanted.get("docker"):
            yield Line(
                "service",
                what,
                "cannot serve engines (confined, own data directory), and would run beside the packaged Docker. Remove "
                "it (snap remove docker), or set host_allow_snap_docker: true to install the packaged one beside it",
                "" if wanted.get("allow_snap_docker") else "host_allow_snap_docker: true",
            )
        elif kind in INBOUND and wanted.get("firewall"):
            allowed = bool(wanted.get("allow_closed_services"))
            yield Line(
                "service",
                what,
                "kept running; role edge will refuse its connections from other machines. List the ports that shall "
                "stay reachable in edge_open_ports, then set host_allow_closed_services: true",
                "" if allowed else "host_allow_closed_services: true",
            )
        else:
            yield Line("service", what, "kept as it is")
    if facts.get("listeners"):
        fate = "closed to other machines by role edge except for edge_open_ports" if wanted.get("firewall") else "kept"
        yield Line("listening ports", _listed(list(facts["listeners"]), 12), fate)


def owner_plan(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what belongs to the owner and what happens to each, one line (`Line`) for each kind.

    :param facts: as `gb10.cluster.owner_facts` returns them.
    :param wanted: what the roles are set to do: ``hostname``, ``docker``, ``docker_restart``, ``log_driver``,
        ``replace_log_driver``, ``stop_desktop``, ``allow_session_end``, ``firewall``, ``allow_closed_services``,
        ``allow_snap_docker``, ``operator``.
    """
    lines = [*_sessions(facts, wanted), *(_containers(facts, wanted) if wanted.get("docker") else ())]
    lines += _reachable(facts, wanted)
    hostname = str(wanted.get("hostname", ""))
    if hostname and hostname != facts.get("hostname"):
        lines.append(Line("host name", str(facts.get("hostname", "")), f"changed to {hostname} (host_hostname)"))
    accounts = [name for name in facts.get("accounts", []) if name != wanted.get("operator")]
    if accounts:
        lines.append(Line("accounts", _listed(accounts), "kept"))
    if wanted.get("operator") in facts.get("accounts", []):
        lines.append(
            Line("accounts", str(wanted["operator"]), "kept; our keys are added to authorized_keys in a marked block")
        )
    if facts.get("networks"):
        lines.append(Line("network definitions", _listed(list(facts["networks"])), "kept; role fabric adds its own"))
    return [asdict(line) for line in lines]


def text_lines(lines: Iterable[Mapping[str, str]]) -> list[str]:
    """Return one line of text for each line of a plan, what is refused first."""
    ordered = sorted(lines, key=lambda line: not line["allow"])
    return [f"{'REFUSED ' if line['allow'] else ''}{line['kind']}: {line['what']}: {line['fate']}" for line in ordered]


def harms(lines: Iterable[Mapping[str, str]]) -> list[str]:
    """Return a sentence for each line that is refused until a variable allows it."""
    return [f"{line['kind']} ({line['what']}): {line['fate']}." for line in lines if line["allow"]]
