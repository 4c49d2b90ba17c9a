# SPDX-License-Identifier: Apache-2.0
"""The states of a rank and of a cluster, and the record of one explanation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

# What is read of the reports, each of which comes from a node; see `_node.shape.shaped`.
FINDING: dict[str, Any] = {
    "name": "",
    "kind": "cause",
    "cause": "",
    "remedy": "",
    "line": "",
    "address": "",
    "count": 1,
    "time_s": 0.0,
    "passed": None,
}
UNIT: dict[str, Any] = {
    "name": "the unit",
    "active_state": "",
    "sub_state": "",
    "result": "",
    "invocation": "",
    "exit_status": None,
    "restarts": 0,
    "seconds": 0.0,
}
LOG: dict[str, Any] = {
    "phase": "none",
    "done": 0,
    "total": 0,
    "phase_time_s": 0.0,
    "distinct_lines": 0,
    "last_line": "",
    "complete": False,
    "nccl_network": "",
    "mtp": {"num_spec_tokens": 0, "method": "", "detected": None},
}
RANK: dict[str, Any] = {
    "node": "",
    "state": ABSENT,
    "read_s": 0.0,
    "unit": UNIT,
    "log": LOG,
    "findings": [FINDING],
    "others": [""],
    "activity": {"compilers": "", "read_mib": 0},
}
FRONT: dict[str, Any] = {"port": 0, "proxied": False, "status": 0, "error": "", "open": False, "engine": 0}
CANARY: dict[str, Any] = {"name": "canary", "ok": False, "tokens": 0, "detail": "", "status": 0, "answer": ""}
API: dict[str, Any] = {
    "url": "the API",
    "health": 0,
    "health_error": "",
    "models": [""],
    "models_status": 0,
    "key_refused": False,
    "canaries": [CANARY],
    "front": (FRONT,),
}
