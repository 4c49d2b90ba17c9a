# SPDX-License-Identifier: Apache-2.0
"""From the variables of a run to what ``diagnose`` reads: each node's report, and what is healthy on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.report import Limits

ROLES = Path(__file__).resolve().parents[3] / "roles"

#: The variable that sets each limit; its role, the part before the first underscore, has its default.
VARIABLES: dict[str, str] = {
    "memory_available_gib": "doctor_memory_available_gib",
    "disk_free_gib": "doctor_disk_free_gib",
    "clock_skew_s": "doctor_clock_skew_seconds",
    "mtu_bytes": "fabric_mtu",
    "speed_mbps": "fabric_speed_mbps",
    "rdma": "fabric_rdma",
    "gpu": "doctor_gpu",
    "time_sync": "host_time_sync",
    "earlyoom": "host_earlyoom",
    "sysctl": "host_sysctl",
    "open_ports": "doctor_open_ports",
}

#: Former names of variables, which count until 0.3.0 where the present one is not set.
FORMER = {"doctor_clock_skew_seconds": "doctor_clock_skew_s"}

#: The register of each task of role doctor, and the key without which it holds no answer.
_REGISTERS = {"fabric": ("__doctor_fabric", "machine"), "ping": ("__doctor_ping", "peers"),
              "skew": ("__doctor_skew", "skew_s")}  # fmt: skip

NOT_PART = "not part of this run"


@cache
def role_defaults(role: str) -> dict[str, Any]:
    """Return the defaults of one of this collection's roles, by variable."""
    found: dict[str, Any] = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text(encoding="utf-8")) or {}
    return found


def node_limits(own: Mapping[str, Any], run: Callable[[str], Any]) -> Limits:
    """Return what is healthy on a node.

    Args:
        own: the node's variables; they win.
        run: returns a variable of this run for all nodes, or None; then the role's default counts.
    """
    found: dict[str, Any] = {}
    for limit, variable in VARIABLES.items():
        former = FORMER.get(variable, variable)
        value = own[variable] if variable in own else own[former] if former in own else run(variable)
        found[limit] = role_defaults(variable.partition("_")[0])[variable] if value is None else value
    found["open_ports"] = tuple(int(port) for port in found["open_ports"])
    return Limits(**found)


def node_report(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the tasks of role doctor registered for a node, as ``diagnose`` reads it."""
    node = own.get("__doctor_node", {})
    report: dict[str, Any] = {"node": node.get("node") or {}, "error": node.get("msg") or NOT_PART}
    for name, (register, key) in _REGISTERS.items():
        found = own.get(register, {})
        report[name] = found if key in found else {}
    report["slow"] = own.get("__doctor_slow", [])
    report["sent"] = own.get("__doctor_sent", {})
    return report
