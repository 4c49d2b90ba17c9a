# SPDX-License-Identifier: Apache-2.0
"""Checks of the engine on a node: what starts at boot, what a swap has left, what its container may do; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine import swap as swaps
from ansible_collections.gb10.cluster.plugins.module_utils._probe.front import front_problem
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.report import FAIL, WARN, Check, Limits, judged


def engine_checks(node: Mapping[str, Any], limits: Limits) -> list[Check]:
    """Return the checks of the engine, from the facts of its node (gb10.cluster.node_facts with ``detail``)."""
    remedy = "Two engines run on one node: run playbooks/serve.yml with -e model= and the one that is to serve."
    return [
        judged("engine", ", ".join(node["engines"]) or "none serves", remedy if len(node["engines"]) > 1 else "", FAIL),
        *_boot_checks(node),
        *_swap_checks(node),
        *_container_checks(node, limits),
        *_front_checks(node),
    ]


def _boot_checks(node: Mapping[str, Any]) -> list[Check]:
    enabled = node.get("engines_enabled", [])
    checks = []
    if len(enabled) > 1:
        checks.append(
            Check(
                "engines at boot",
                ", ".join(enabled),
                FAIL,
                "Two engines do not fit on one node, and all of these start at the next boot: `systemctl disable` all "
                f"but the one that is to serve ({', '.join(node['engines']) or 'none serves now'}).",
            )
        )
    unverified = [unit for unit in node["engines"] if unit not in enabled]
    if unverified and "engines_enabled" in node and not node.get("swap"):
        model = unverified[0].removeprefix("vllm-").removesuffix(".service")
        checks.append(
            Check(
                "engine at boot",
                f"{', '.join(unverified)} runs, and does not start at boot: it was not verified",
                WARN,
                f"Run playbooks/serve.yml -e model={model}.",
            )
        )
    return checks


def _swap_checks(node: Mapping[str, Any]) -> list[Check]:
    """Return what is left of a swap whose control node did not commit it."""
    pending, note = node.get("swap") or {}, node.get("swap_rolled_back") or {}
    if pending.get("state") == swaps.PENDING:
        remedy = "Let the run that swaps finish; when it has died, run it again or wait for the nodes."
        return [Check("swap", swaps.pending_sentence(pending), WARN, remedy)]
    checks = []
    if pending:
        decision = str(pending["state"]).replace("_", " ")
        checks.append(
            Check(
                "swap",
                f"the swap from {pending['before']} to {pending['after']} was {decision}, and not every node has "
                "reported that it followed",
                WARN,
                "Run playbooks/serve.yml: it ends the swap on all nodes.",
            )
        )
    if note:
        checks.append(
            Check(
                "last swap",
                swaps.rolled_back_sentence(note),
                WARN,
                "Run swap-model.yml again; the next committed swap removes this note.",
            )
        )
    return checks


def _front_checks(node: Mapping[str, Any]) -> list[Check]:
    """Return whether clients reach the API, and whether it asks them for a key."""
    front = node.get("front") or {}
    if not front or (not front["status"] and front["engine"] != 200):
        return []
    port = f"port {front['port']}, {'the proxy' if front['proxied'] else 'the engine itself'}"
    unreached = front_problem(front, "")
    if unreached:
        return [Check("API", unreached.cause, FAIL, unreached.remedy)]
    if front["open"]:
        return [
            Check(
                "API",
                f"{port}: no key is asked for, whoever reaches the port can use it",
                WARN,
                "Set VLLM_API_KEY (or gb10_api_key from a vault) and run playbooks/serve.yml.",
            )
        ]
    return [Check("API", f"{port}: HTTP {front['status']} without a key")]


def _container_checks(node: Mapping[str, Any], limits: Limits) -> list[Check]:
    """Return whether RDMA can work in the containers that serve: the needs of [S2], as the kernel reports them."""
    checks = []
    for name, found in sorted(node.get("engine_containers", {}).items()):
        memlock = found["memlock_bytes"]
        shown = "unlimited" if memlock == -1 else "unknown" if memlock is None else f"{memlock} bytes"
        missing = []
        if "IPC_LOCK" not in found["capabilities"]:
            missing.append("the capability IPC_LOCK (engine_capabilities)")
        if memlock != -1:
            missing.append("unlimited locked memory (engine_ulimits: memlock=-1:-1)")
        if not found["rdma_devices"]:
            missing.append("/dev/infiniband/uverbs* (engine_devices)")
        remedy = (
            f"RDMA does not work in it, and NCCL falls back to TCP without a message: give it {', '.join(missing)}, "
            "then run playbooks/serve.yml."
        )
        checks.append(
            judged(
                f"container {name}",
                f"capabilities {', '.join(found['capabilities']) or 'none'}; locked memory {shown}; RDMA devices "
                f"{', '.join(found['rdma_devices']) or 'none'}; "
                f"{'no new privileges' if found['no_new_privileges'] else 'may gain privileges'}",
                remedy if missing and limits.rdma else "",
                FAIL,
            )
        )
    return checks
