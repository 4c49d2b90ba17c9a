# SPDX-License-Identifier: Apache-2.0
"""How the state of a lab is reported: a table for people, a document for programs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.plan import NETS, Net, NodePlan
from lab.probe import NodeState
from lab.shaping import Rates, format_rate

#: What a running node says of itself beside its links; see `NodeState`.
_SERVICES = ("systemd", "sshd", "docker")


@dataclass(frozen=True)
class NodeReport:
    """One node: its plan, whether it has power, what it says of itself, which cables are pulled.

    silence: why a node with power says nothing of itself, else empty.
    """

    node: NodePlan
    power: str
    state: NodeState | None
    cut: tuple[Net, ...]
    rates: Rates
    silence: str = ""

    def problems(self) -> list[str]:
        """Return what is not as the lab wants it, one clause each; empty when all is well.

        A cable that was pulled on purpose is a problem too: the node is not usable as it is.
        """
        if self.state is None:
            return [f"does not answer: {self.silence}" if self.silence else f"is {self.power}"]
        found: list[str] = []
        if self.state.systemd not in ("running", "degraded"):
            found.append(f"systemd is {self.state.systemd}")
        if self.state.sshd != "active":
            found.append(f"sshd is {self.state.sshd}")
        for net in NETS:
            link = self.state.links.get(net)
            if link is None:
                found.append(f"has lost its address on {net}")
            elif net in self.cut:
                found.append(f"{net} is cut")
            elif not link.carrier:
                found.append(f"{net} has no carrier")
            elif link.bits_per_s != self.rates.of(net):
                found.append(
                    f"{net} sends at {format_rate(link.bits_per_s)} instead of {format_rate(self.rates.of(net))}"
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        links = {}
        for net in NETS:
            link = self.state.links.get(net) if self.state else None
            links[net] = {
                "address": str(self.node.address(net)),
                "cut": net in self.cut,
                **{key: getattr(link, key, None) for key in ("device", "carrier", "mtu", "bits_per_s")},
            }
        return {
            "name": self.node.host,
            "container": self.node.container,
            "power": self.power,
            **{key: getattr(self.state, key, None) for key in _SERVICES},
            "links": links,
            "problems": self.problems(),
        }


def document(name: str, reports: Sequence[NodeReport]) -> dict[str, Any]:
    """Return the state of a lab for JSON."""
    return {
        "name": name,
        "healthy": all(not report.problems() for report in reports),
        "nodes": [report.as_dict() for report in reports],
    }


def _link_cell(report: NodeReport, net: Net) -> str:
    address = str(report.node.address(net))
    link = report.state.links.get(net) if report.state else None
    if net in report.cut:
        return f"{address} CUT"
    if link is None:
        return f"{address} -"
    return f"{address} {format_rate(link.bits_per_s) if link.carrier else 'no carrier'}"


def table(name: str, reports: Sequence[NodeReport]) -> str:
    """Return the state of a lab as a text table."""
    rows: list[tuple[str, ...]] = [("NODE", "POWER", "SYSTEMD", "SSHD", "DOCKER", "MGMT", "FABRIC")]
    rows += [
        (
            report.node.host,
            report.power,
            *(getattr(report.state, key, "-") for key in _SERVICES),
            _link_cell(report, "mgmt"),
            _link_cell(report, "fabric"),
        )
        for report in reports
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{report.node.host}: {'; '.join(report.problems())}" for report in reports if report.problems()]
    return "\n".join([f"Lab {name}", *lines])
