# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis consists of: checks with a level and a remedy, the limits of what is healthy, the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

OK = "OK"
WARN = "WARN"
FAIL = "FAIL"
RANK = {OK: 0, WARN: 1, FAIL: 2}


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    value: str
    level: str = OK
    remedy: str = ""


def judged(name: str, value: str, remedy: str, level: str = WARN) -> Check:
    """Return a check of that level, or one that is OK where there is nothing to do."""
    return Check(name, value, level if remedy else OK, remedy)


@dataclass(frozen=True)
class Limits:
    """What is healthy. Sizes in GiB, times in seconds, MTU in bytes, speed in Mb/s; 0 switches a limit off."""

    memory_available_gib: float = 10.0
    disk_free_gib: float = 50.0
    clock_skew_s: float = 0.5
    mtu_bytes: int = 9000
    speed_mbps: int = 200_000
    rdma: bool = True
    gpu: bool = True
    time_sync: bool = True
    earlyoom: bool = True
    sysctl: bool = True
    open_ports: tuple[int, ...] = (22, 8000)


@dataclass
class Report:
    """The diagnosis; ``nodes`` by name."""

    nodes: dict[str, list[Check]] = field(default_factory=dict)
    cluster: list[Check] = field(default_factory=list)

    def checks(self) -> Iterable[tuple[str, Check]]:
        """Return every check with the node it is of; the cluster's under an empty name."""
        for name, checks in self.nodes.items():
            for check in checks:
                yield name, check
        for check in self.cluster:
            yield "", check

    @property
    def level(self) -> str:
        """The worst level of all checks."""
        return max((check.level for _name, check in self.checks()), key=lambda each: RANK[each], default=OK)

    def counts(self) -> dict[str, int]:
        """Return how many checks have which level."""
        found = {OK: 0, WARN: 0, FAIL: 0}
        for _name, check in self.checks():
            found[check.level] += 1
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "level": self.level,
            "counts": self.counts(),
            "nodes": {name: [asdict(check) for check in checks] for name, checks in self.nodes.items()},
            "cluster": [asdict(check) for check in self.cluster],
        }
