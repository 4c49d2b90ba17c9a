# SPDX-License-Identifier: Apache-2.0
"""Jinja filters of the fabric: thin doors to the pure functions in module_utils."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import carries, from_dict
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.throughput import slow_links
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.plan import Node, Settings, is_live, make_plan
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.render import render, table
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.verdict import rejections, verdict


def fabric_verdict(findings: Mapping[str, Mapping[str, Any]], mtu_bytes: int = 0) -> list[str]:
    """Return the sentences about a fabric; see ``fabric_verdict.verdict``."""
    return verdict(findings, int(mtu_bytes))


def fabric_plan(nodes: Sequence[Mapping[str, Any]], **settings: Any) -> dict[str, Any]:
    """Return the plan of a cluster as dictionaries; see ``fabric_plan.make_plan``.

    Args:
        nodes: ``name``, ``address``, ``facts`` (a result of gb10.cluster.fabric_facts), ``heard`` (a result of
            gb10.cluster.fabric_neighbours, or nothing), ``management``; all members in the order of their index.
        settings: the fields of ``fabric_plan.Settings``.
    """
    members = []
    protected = set(settings.pop("protected", ()))
    for node in nodes:
        facts = node["facts"]
        told = node.get("heard") or {}
        # What was not switched on could not be heard.
        heard = None if told.get("down") else told.get("neighbours")
        control = facts.get("control") or {}
        protected |= {control["client"]} if control else set()
        management = {str(node["management"])} if node.get("management") else set()
        management |= {control["server"]} if control else set()
        members.append(
            Node(
                name=str(node["name"]),
                address=str(node.get("address") or ""),
                machine=from_dict(facts["machine"]),
                neighbours=(
                    {name: [(each[0], each[1]) for each in told] for name, told in heard.items()}
                    if heard is not None
                    else None
                ),
                management=tuple(sorted(management)),
            )
        )
    subnets = tuple(str(subnet) for subnet in settings.pop("subnets", ()))
    plan = make_plan(members, Settings(subnets=subnets, protected=tuple(sorted(protected)), **settings))
    return {**plan.to_dict(), "live": bool(plan.nodes) and all(is_live(plan.node(each.name), each) for each in members)}


def fabric_files(node: Mapping[str, Any], backend: str) -> list[dict[str, str]]:
    """Return the files of one node's plan; see ``fabric_render.render``."""
    try:
        return render(node, backend)
    except ValueError as error:
        raise AnsibleFilterError(f"{node['name']}: {error}") from error


def fabric_table(plan: Mapping[str, Any]) -> list[str]:
    """Return a plan as aligned lines."""
    return table(plan["nodes"])


def fabric_slow(
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]], rates_gbps: Mapping[str, float], floor: float
) -> list[str]:
    """Return the sentences about slow links; see ``throughput.slow_links``."""
    return slow_links(measured, rates_gbps, float(floor))


def fabric_rejections(applied: Mapping[str, Mapping[str, Any]], reached: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return why a change must not be kept; see ``fabric_verdict.rejections``."""
    return rejections(applied, reached)


def fabric_rate_gbps(facts: Mapping[str, Any], address: str) -> float:
    """Return what the device with an address has negotiated, in Gb/s; 0 when it does not say."""
    netdev = carries(from_dict(facts["machine"]), address)
    return (netdev.speed_mbps or 0) / 1000 if netdev else 0.0


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "fabric_files": fabric_files,
            "fabric_plan": fabric_plan,
            "fabric_rate_gbps": fabric_rate_gbps,
            "fabric_rejections": fabric_rejections,
            "fabric_slow": fabric_slow,
            "fabric_table": fabric_table,
            "fabric_verdict": fabric_verdict,
        }
