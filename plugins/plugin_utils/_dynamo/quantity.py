# SPDX-License-Identifier: Apache-2.0
"""Quantities of Kubernetes, and what is free on the nodes.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "m": 0.001}
_FACTORS |= {f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGTP", 1)}
_QUANTITY = re.compile(r"^(?P<number>[0-9.]+)(?P<suffix>[kMGTPm]?|[KMGTP]i)$")
ENDED = ("Succeeded", "Failed")


def quantity(text: object) -> float:
    """Return a quantity (``1200Gi``, ``4``, ``500m``) as a number.

    :raises ValueError: it is none.
    """
    found = _QUANTITY.match(str(text))
    if not found:
        raise ValueError(f"{text!r} is no quantity of Kubernetes.")
    return float(found["number"]) * _FACTORS[found["suffix"]]


@dataclass(frozen=True)
class Room:
    """What a node has of some resources, and which pods have requested it; counts.

    :ivar users: namespace/pod → what it requests of the first resource.
    """

    node: str
    has: Mapping[str, int]
    free: Mapping[str, int]
    users: Mapping[str, int]
    usable: bool = True

    def fits(self, needs: Mapping[str, int]) -> int:
        """Return how many pods with these needs fit."""
        if not self.usable:
            return 0
        return min(max(self.free.get(name, 0), 0) // count for name, count in needs.items())


def requested(pod: Mapping[str, Any], resource: str) -> int:
    """Return what a pod requests of a countable resource."""
    total = 0
    for container in pod["spec"].get("containers") or []:
        wanted = container.get("resources") or {}
        total += int(
            quantity((wanted.get("requests") or {}).get(resource) or (wanted.get("limits") or {}).get(resource) or 0)
        )
    return total


def rooms(
    nodes: Iterable[Mapping[str, Any]],
    pods: Sequence[Mapping[str, Any]],
    resources: Sequence[str],
    labels: Mapping[str, str],
    leaving: Iterable[str] = (),
) -> list[Room]:
    """Return the room on each node with these labels.

    :param leaving: graphs whose pods will be gone: what they hold counts as free.
    """
    gone = set(leaving)
    found = []
    for node in nodes:
        meta = node["metadata"]
        if not labels.items() <= (meta.get("labels") or {}).items():
            continue
        has = {
            each: int(quantity(((node.get("status") or {}).get("allocatable") or {}).get(each, 0)))
            for each in resources
        }
        free, users = dict(has), {}
        for pod in pods:
            if pod["spec"].get("nodeName") != meta["name"] or (pod.get("status") or {}).get("phase") in ENDED:
                continue
            if (pod["metadata"].get("labels") or {}).get("nvidia.com/dynamo-graph-deployment-name") in gone:
                continue
            for each in resources:
                free[each] -= requested(pod, each)
            if count := requested(pod, resources[0]):
                users[f"{pod['metadata'].get('namespace', '')}/{pod['metadata']['name']}"] = count
        ready = {each["type"]: each["status"] for each in (node.get("status") or {}).get("conditions") or []}
        usable = not node.get("spec", {}).get("unschedulable") and ready.get("Ready", "True") == "True"
        found.append(Room(meta["name"], has, free, users, usable))
    return found
