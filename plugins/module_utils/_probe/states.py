# SPDX-License-Identifier: Apache-2.0
"""The states of a rank and of a cluster, and the record of one explanation."""

from __future__ import annotations

from dataclasses import dataclass

# States of one rank.
ABSENT = "absent"
STOPPED = "stopped"
STARTING = "starting"
RUNNING = "running"
DEAD = "dead"
UNREACHABLE = "unreachable"
# States of the cluster beside absent, starting and dead.
READY = "ready"
WRONG_MODEL = "wrong_model"
DEGRADED = "degraded"
WEDGED = "wedged"


@dataclass(frozen=True)
class Diagnosis:
    """One explanation: on which node, in which line, why, and what to do."""

    node: str
    name: str
    kind: str
    cause: str
    remedy: str
    line: str = ""
    count: int = 1

    def sentence(self) -> str:
        """The explanation in words, for a failure message."""
        shown = f" Line: {self.line}" if self.line else ""
        return f"{self.node}: {self.cause} {self.remedy}{shown}"


TRANSIENT_CAUSES = frozenset(
    {"rendezvous_timeout", "ray_head_unreachable", "node_unreachable", "memory_freed_while_profiling"}
)
"""Causes that a restart may fix, because another rank was merely not there yet, or memory is free by then."""
