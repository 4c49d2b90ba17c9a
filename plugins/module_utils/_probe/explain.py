# SPDX-License-Identifier: Apache-2.0
"""From the findings of all ranks to the likeliest explanation of a loss; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe.signatures import (
    BY_NAME,
    CAUSE,
    CONSEQUENCE,
    CONTEXT,
    USUAL,
)
from ansible_collections.gb10.cluster.plugins.module_utils._probe.states import (
    ABSENT,
    DEAD,
    STOPPED,
    TRANSIENT_CAUSES,
    UNREACHABLE,
    Diagnosis,
)

_KIND_ORDER = {CAUSE: 0, CONTEXT: 1, CONSEQUENCE: 2}


def _unit_words(report: Mapping[str, Any]) -> str:
    unit = report.get("unit", {})
    parts = [f"{unit.get('name', 'the unit')} is {unit.get('active_state') or 'gone'}"]
    if unit.get("sub_state"):
        parts.append(f"({unit['sub_state']})")
    if unit.get("result") and unit.get("result") != "success":
        parts.append(f"with result {unit['result']}")
    if unit.get("exit_status"):
        parts.append(f"and exit status {unit['exit_status']}")
    if unit.get("restarts"):
        parts.append(f"after {unit['restarts']} restart(s)")
    return " ".join(parts)


def rank_diagnoses(reports: Sequence[Mapping[str, Any]], nodes_by_address: Mapping[str, str]) -> list[Diagnosis]:
    """The findings of all ranks: causes first, those that another rank's absence explains and those
    that the start outlived after the others, those of gone ranks before living ones', then by the rank
    of their signature, then by time."""
    keyed: list[tuple[tuple[int, int, int, int, float], Diagnosis]] = []
    seen: set[tuple[str, str]] = set()
    unreachable = {str(report.get("node", "")) for report in reports if report.get("state") == UNREACHABLE}
    for report in reports:
        gone = report.get("state") in (DEAD, UNREACHABLE)
        for place, finding in enumerate(report.get("findings", [])):
            node = nodes_by_address.get(str(finding.get("address", "")), str(report.get("node", "")))
            name = str(finding["name"])
            if (node, name) in seen:
                continue
            seen.add((node, name))
            diagnosis = Diagnosis(
                node=node,
                name=name,
                kind=str(finding.get("kind", CAUSE)),
                cause=str(finding["cause"]),
                remedy=str(finding.get("remedy", "")),
                line=str(finding.get("line", "")),
                count=int(finding.get("count", 1)),
            )
            order = (
                _KIND_ORDER.get(diagnosis.kind, 3),
                1 if finding.get("passed") or (name in TRANSIENT_CAUSES and node not in unreachable) else 0,
                0 if gone else 1,
                BY_NAME[name].rank if name in BY_NAME else USUAL,
                float(finding.get("time_s", 0.0)) or float(place),
            )
            keyed.append((order, diagnosis))
    keyed.sort(key=lambda entry: entry[0])
    return [diagnosis for _order, diagnosis in keyed]


def _bare_deaths(reports: Sequence[Mapping[str, Any]], explained: set[str]) -> list[Diagnosis]:
    """What is known of gone ranks whose log explains nothing."""
    plain: list[Diagnosis] = []
    for report in reports:
        node, state = str(report.get("node", "")), report.get("state")
        if node in explained or state not in (DEAD, STOPPED, ABSENT):
            continue
        plain.append(
            Diagnosis(
                node=node,
                name="unit_failed" if state == DEAD else "unit_not_running",
                kind=CAUSE if state != DEAD else CONTEXT,
                cause=f"{_unit_words(report)}.",
                remedy="Read the full log of the unit on this node: nothing in it matches a known failure."
                if state == DEAD
                else "Start the unit on this node.",
                line=str(report.get("log", {}).get("last_line", "")),
            )
        )
    return plain


def explain_loss(
    reports: Sequence[Mapping[str, Any]], findings: Sequence[Diagnosis], lost: set[str]
) -> list[Diagnosis]:
    """Causes on the lost ranks, causes elsewhere, what else the lost ranks show, and the rest."""
    causes = [each for each in findings if each.kind == CAUSE]
    others = [each for each in findings if each.kind != CAUSE]
    bare = _bare_deaths(reports, {each.node for each in findings})
    return [
        *(each for each in causes if each.node in lost),
        *(each for each in causes if each.node not in lost),
        *(each for each in others if each.node in lost),
        *bare,
        *(each for each in others if each.node not in lost),
    ]
