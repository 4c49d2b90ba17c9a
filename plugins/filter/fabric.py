# SPDX-License-Identifier: Apache-2.0
"""Jinja filters of the fabric: thin wrappers of the pure functions in module_utils and plugin_utils."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.environment import (
    FabricError,
    check_engine,
    parse_record,
)
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import Machine, from_dict
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.throughput import slow_links
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.plan import Node, Settings, is_live, make_plan
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.record import forwarded, records
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.render import render, table
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.verdict import failures, rates, verdict, warnings


def fabric_verdict(findings: Mapping[str, Mapping[str, Any]], mtu_bytes: int = 0) -> list[str]:
    """Return the sentences about a fabric; see ``verdict.verdict``."""
    return verdict(findings, int(mtu_bytes))


def fabric_warnings(findings: Mapping[str, Mapping[str, Any]], mtu_bytes: int = 0) -> list[str]:
    """Return the sentences about what only costs throughput; see ``verdict.warnings``."""
    return warnings(findings, int(mtu_bytes))


def fabric_plan(
    nodes: Sequence[str],
    facts: Mapping[str, Mapping[str, Any]],
    heard: Mapping[str, Mapping[str, Any]],
    addresses: Mapping[str, str],
    management: Mapping[str, str],
    **settings: Any,
) -> dict[str, Any]:
    """Return the plan of a cluster as dictionaries; see ``plan.make_plan``.

    :param nodes: names of all members in the order of their index.
    :param facts: by node, a result of gb10.cluster.fabric_facts.
    :param heard: by node, a result of gb10.cluster.fabric_neighbours; nodes that were not asked are missing.
    :param addresses: by node, its gb10_fabric_address.
    :param management: by node, the address by which Ansible reaches it.
    :param settings: the fields of ``plan.Settings``.
    """
    members = []
    protected = set(settings.pop("protected", ()))
    for name in nodes:
        control = facts[name].get("control") or {}
        if control:
            protected.add(control["client"])
        result = heard.get(name) or {}
        # What was not switched on could not be heard.
        neighbours = None if result.get("down") else result.get("neighbours")
        members.append(
            Node(
                name=str(name),
                address=str(addresses.get(name) or ""),
                machine=from_dict(facts[name]["machine"]),
                neighbours=(
                    {device: [(each[0], each[1]) for each in found] for device, found in neighbours.items()}
                    if neighbours is not None
                    else None
                ),
                management=tuple(sorted({str(management.get(name) or name), *filter(None, [control.get("server")])})),
            )
        )
    subnets = tuple(str(subnet) for subnet in settings.pop("subnets", ()))
    plan = make_plan(members, Settings(subnets=subnets, protected=tuple(sorted(protected)), **settings))
    return {**plan.to_dict(), "live": bool(plan.nodes) and all(is_live(plan.node(each.name), each) for each in members)}


def fabric_files(node: Mapping[str, Any], backend: str) -> list[dict[str, str]]:
    """Return the files of one node's plan; see ``render.render``."""
    try:
        return render(node, backend)
    except ValueError as error:
        raise AnsibleFilterError(f"{node['name']}: {error}") from error


def fabric_table(plan: Mapping[str, Any]) -> list[str]:
    """Return a plan as aligned lines."""
    return table(plan["nodes"])


def fabric_slow(
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]],
    rates_gbps: Mapping[str, float],
    floor: float,
    facts: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Return the sentences about slow links; see ``throughput.slow_links``."""
    return slow_links(measured, rates_gbps, float(floor), forwarded(_machines(facts)))


def fabric_records(
    facts: Mapping[str, Mapping[str, Any]], plan: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Return by node how it takes part in the fabric; see ``record.records``."""
    return records(_machines(facts), plan)


def fabric_engine_faults(record: Mapping[str, Any], spec: Mapping[str, Any]) -> list[str]:
    """Return why a model's engine cannot work on a node's fabric; see ``environment.check_engine``."""
    try:
        check_engine(
            parse_record(record),
            str(spec.get("engine", "")),
            int(spec.get("nodes", 1)),
            {str(name): str(value) for name, value in (spec.get("env") or {}).items()},
        )
    except FabricError as error:
        return [str(error)]
    return []


def _machines(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Machine]:
    return {name: from_dict(result["machine"]) for name, result in facts.items()}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "fabric_engine_faults": fabric_engine_faults,
            "fabric_failures": failures,
            "fabric_files": fabric_files,
            "fabric_plan": fabric_plan,
            "fabric_rates": rates,
            "fabric_records": fabric_records,
            "fabric_slow": fabric_slow,
            "fabric_table": fabric_table,
            "fabric_verdict": fabric_verdict,
            "fabric_warnings": fabric_warnings,
        }
