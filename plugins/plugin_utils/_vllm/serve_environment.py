# SPDX-License-Identifier: Apache-2.0
"""The engine's environment: which variables this vLLM reads, and what its own getters refuse."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import INTEGER, Check, Gone, listed, show

_MOE = "use the option moe-backend instead"
_LINEAR = "use the option linear-backend instead"
GONE_ENV: dict[str, Gone] = {
    "VLLM_ATTENTION_BACKEND": Gone("use the option attention-backend instead"),
    "VLLM_FLASHINFER_MOE_BACKEND": Gone(_MOE, (0, 24, 0)),
    "VLLM_NVFP4_GEMM_BACKEND": Gone(_LINEAR, (0, 24, 0)),
    "VLLM_TEST_FORCE_FP8_MARLIN": Gone(f"{_LINEAR} (marlin)"),
    "VLLM_USE_FLASHINFER_MOE_FP16": Gone(_MOE),
    "VLLM_USE_FLASHINFER_MOE_FP4": Gone(_MOE, (0, 24, 0)),
    "VLLM_USE_FLASHINFER_MOE_FP8": Gone(_MOE),
    "VLLM_USE_V1": Gone("the V1 engine is the only one; leave it out"),
}
#: What every node sets from its own fabric at each start (module_utils/_fabric/environment.py), over the model's value.
OF_THE_NODE = (
    "GLOO_SOCKET_IFNAME",
    "NCCL_IB_HCA",
    "NCCL_SOCKET_IFNAME",
    "OMPI_MCA_btl_tcp_if_include",
    "TP_SOCKET_IFNAME",
    "UCX_NET_DEVICES",
    "VLLM_HOST_IP",
)
#: Variables that are set by habit from another machine's recipe: (name, value or None for any) → what they do here.
_UNWISE: dict[tuple[str, str | None], str] = {
    ("HF_TOKEN", None): "is a secret, and no node needs it: weights come from the control node (gb10_hf_token)",
    ("HUGGING_FACE_HUB_TOKEN", None): "is a secret, and no node needs it (gb10_hf_token)",
    ("NCCL_IB_DISABLE", "1"): "switches RDMA off: the collectives go over TCP",
    (
        "NCCL_IB_GID_INDEX",
        None,
    ): "is another one on each node and changes; without it NCCL finds the RoCE v2 GID itself",
    ("NCCL_NET", "Socket"): "switches RDMA off: the collectives go over TCP",
}
_TRUTHY = ("1", "true", "yes", "on", "y", "t")


def environment(check: Check, env: Mapping[str, Any], extra: set[str]) -> dict[str, str]:
    """Return the environment as text; note unknown ``VLLM_*`` names and wrong values."""
    known: Mapping[str, Mapping[str, Any]] = check.tables[check.name]["env"]
    found: dict[str, str] = {}
    for raw, value in env.items():
        name = str(raw)
        if isinstance(value, (bool, dict, list, tuple)) or value is None:
            check.errors.append(
                f"env.{name} must be text, found {show(value)}; quote what the variable is to hold, e.g. '1'."
            )
            continue
        found[name] = str(value)
        if name in OF_THE_NODE:
            check.notes.append(f"env.{name} has no effect: each node sets it from its own fabric. Leave it out.")
        why = _UNWISE.get((name, found[name])) or _UNWISE.get((name, None))
        if why:
            check.notes.append(f"env.{name} {why}. Leave it out.")
        elif name == "RAY_memory_monitor_refresh_ms" and found[name] != "0":
            check.notes.append(
                f"env.{name} switches Ray's memory monitor on, which kills ranks that use unified memory as "
                "they should. Leave it out."
            )
        gone = GONE_ENV.get(name)
        if name in extra:
            continue
        if gone and gone.since and check.version.release >= gone.since:
            since = ".".join(map(str, gone.since))
            check.unknown(
                f"env.{name}: vLLM {check.version.text} ignores it, it is gone since {since}: {gone.instead}."
            )
        elif name not in known:
            _unknown_variable(check, name, known, gone)
        else:
            if gone:
                until = f" and gone in {'.'.join(map(str, gone.since))}" if gone.since else ""
                check.notes.append(f"env.{name} is deprecated{until}: {gone.instead}.")
            _variable_value(check, name, found[name], known[name])
    return found


def _unknown_variable(check: Check, name: str, known: Mapping[str, Mapping[str, Any]], gone: Gone | None) -> None:
    """Note a variable of vLLM's that this version does not read."""
    near = difflib.get_close_matches(name.upper().replace("-", "_"), list(known), n=1, cutoff=0.8)
    if not name.startswith("VLLM_"):
        if near and (near[0] == name.upper() or name.upper().startswith(("VLLM", "VLM", "VLMM"))):
            check.errors.append(f"env.{name} is no variable of vLLM. Did you mean '{near[0]}'?")
        return
    sentence = f"env.{name}: vLLM {check.version.text} does not know it and would only warn."
    sentence += check.elsewhere(lambda table: name in table["env"])
    if name in check.providers:
        mods = " or ".join(f"'{mod}'" for mod in check.providers[name])
        sentence += f" The mod {mods} adds it; put that into model_spec.mods."
    elif gone:
        sentence += f" It is gone: {gone.instead}."
    elif near:
        sentence += f" Did you mean '{near[0]}'?"
    check.unknown(sentence)


def _variable_value(check: Check, name: str, text: str, entry: Mapping[str, Any]) -> None:
    """Note a value that vLLM's own getter would refuse when the engine starts; a build of others may take it."""
    choices = entry.get("choices")
    if choices:
        fold: Callable[[str], str] = str.lower if entry.get("fold") else str
        parts = text.split(",") if entry.get("nargs") else [text]
        for part in (each.strip() for each in parts):
            if fold(part) not in [fold(each) for each in choices]:
                check.unknown(f"env.{name} is {show(part)}; vLLM {check.version.text} takes {listed(choices)}.")
    elif entry.get("kind") == "bool":
        if text in entry["true"] or text.lower() in ("0", "false", "no", "off", ""):
            return
        read = "reads it as off" if text.lower() in _TRUTHY else "knows only on and off"
        check.unknown(
            f"env.{name} is {show(text)}; vLLM {check.version.text} {read}. Write '{entry['true'][0]}' or '0'."
        )
    elif entry.get("kind") == "int" and not INTEGER.match(text.strip()):
        check.unknown(f"env.{name} takes a whole number (0 and 1 for off and on), found {show(text)}.")
    elif entry.get("kind") == "float":
        try:
            float(text)
        except ValueError:
            check.unknown(f"env.{name} takes a number, found {show(text)}.")
    elif entry.get("kind") == "json":
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            check.unknown(f"env.{name} takes JSON, found {show(text)}.")
