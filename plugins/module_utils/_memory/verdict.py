# SPDX-License-Identifier: Apache-2.0
"""Does this model start on this node, and survive: weights, cache, activations, host.

`evaluate` turns one node's memory and one engine configuration into a verdict with figures, reasons and suggestions;
`tightest_of` names the tightest of several nodes.  Everything here is pure.  GiB are binary, figures are one rank's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import kv
from ansible_collections.gb10.cluster.plugins.module_utils._memory.advice import suggestions_for
from ansible_collections.gb10.cluster.plugins.module_utils._memory.judge import judge, notes_on
from ansible_collections.gb10.cluster.plugins.module_utils._memory.plan import figures_of, make_plan
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    AUTO_LENGTH,
    FITS,
    REFUSED,
    UNKNOWN,
    VERDICTS,
    Budget,
    MemoryModelError,
    Settings,
    check_settings,
    missing_facts,
    split_problems,
)


def unknown(missing: Sequence[str]) -> Budget:
    """Return the honest verdict on a model of which not enough is known."""
    return Budget(verdict=UNKNOWN, reasons=["The memory of this model cannot be computed."], missing=list(missing))


def evaluate(settings: Settings) -> Budget:
    """Return the verdict on one engine configuration on one node.

    :raises MemoryModelError: with every problem at once, when the settings themselves are wrong
    """
    auto = settings.max_model_len == AUTO_LENGTH
    if auto:
        settings = replace(settings, max_model_len=settings.geometry.max_position_embeddings)
    problems = check_settings(settings)
    if problems:
        raise MemoryModelError(problems)
    version = kv.parse_version(settings.vllm_version) or kv.NEWEST_READ
    if version < kv.OLDEST_READ:
        oldest = kv.version_text(kv.OLDEST_READ)
        sentence = f"vLLM {settings.vllm_version} is older than {oldest}, the oldest release whose source was read."
        return unknown([sentence])
    rules = kv.rules_for(version)
    missing = missing_facts(settings, rules)
    if missing:
        return unknown(missing)
    split = split_problems(settings)
    if split:
        return Budget(verdict=REFUSED, reasons=split)
    plan = make_plan(settings, rules)
    said = []
    if auto:
        limit = settings.max_model_len
        longest = plan.layout.longest_sequence(max(0, plan.pool_bytes), limit)
        # None fits: judged, and refused, at the model's own length.
        if longest:
            plan = make_plan(replace(settings, max_model_len=longest), rules)
            which = "the model's own limit" if longest == limit else f"of the {limit} that the model allows"
            said = [f"max-model-len auto comes to {longest} tokens, {which}."]
    verdict, reasons = judge(plan)
    reasons = [*said, *reasons]
    return Budget(
        verdict=verdict,
        reasons=reasons,
        figures=figures_of(plan),
        suggestions=[] if verdict == FITS else suggestions_for(plan, verdict),
        notes=notes_on(plan, version > kv.NEWEST_READ),
    )


def _report(result: Mapping[str, Any], sentence: str) -> str:
    """Return what a person reads after the model's name: the verdict, then what to do, one line each."""
    lines = [f"fits on this cluster. {sentence}"]
    if result["verdict"] == UNKNOWN:
        lines = [
            f"cannot be sized. {sentence}",
            "A cache that was measured makes an estimate possible: expected.kv_cache of the model's file "
            "(docs/memory.md). -e model_memory_check=false continues without this check.",
        ]
    elif result["verdict"] == REFUSED:
        lines = [f"does not fit on this cluster. {sentence}"]
    for each in result.get("suggestions") or []:
        enough = " This alone is enough." if each["resolves"] and result["verdict"] == REFUSED else ""
        lines.append(f"{each['order']}. {each['action']}{enough}")
    return "\n".join(lines)


def tightest_of(per_node: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Do the same for results of ``gb10.cluster.memory_budget``, which are plain data.

    :raises ValueError: without any node, or with a result that is not one of that module
    """
    if not per_node:
        raise ValueError("No node was given: there is no tightest one.")
    for name, result in per_node.items():
        if result.get("verdict") not in VERDICTS:
            raise ValueError(f"The result of {name} is not one of gb10.cluster.memory_budget: it has no verdict.")

    def looseness(name: str) -> tuple[int, float, str]:
        result = per_node[name]
        headroom = result.get("headroom_gib")
        return -VERDICTS.index(result["verdict"]), float("-inf") if headroom is None else float(headroom), name

    node = min(per_node, key=looseness)
    result = per_node[node]
    reason = " ".join([*result["reasons"], *result["missing"]])
    which = f"{node} is the tightest of {len(per_node)} nodes" if len(per_node) > 1 else node
    sentence = f"{which} ({result['verdict']}): {reason}"
    return {
        "verdict": result["verdict"],
        "node": node,
        "reason": sentence,
        "report": _report(result, sentence),
        "unsized": bool(result.get("unsized")),
        "per_node": {name: per_node[name]["verdict"] for name in sorted(per_node)},
    }
