# SPDX-License-Identifier: Apache-2.0
"""Filters that turn the plan into what a rank runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import launch


def rank_options(
    plan: Mapping[str, Any], host: str, api_host: str, api_port: int = 0, taken: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return the options of ``vllm serve`` for one member of the plan."""
    options, errors = launch.rank_options(plan, host, api_host, api_port, taken)
    if errors:
        raise AnsibleFilterError("\n".join(errors))
    return options


def systemd_join(arguments: Sequence[str]) -> str:
    """Return a command line for ExecStart=, one argument a line."""
    return " \\\n  ".join(launch.systemd_quote(str(argument)) for argument in arguments)


def engines_left(results: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> str:
    """Return which engines run after a return that failed; see engines_left.yml."""
    silent = [host for host in hosts if "units" not in results.get(host, {})]
    runs: dict[str, list[str]] = {}
    for host in hosts:
        for unit, state in results.get(host, {}).get("units", {}).items():
            if state["active"]:
                runs.setdefault(unit.removeprefix("vllm-").removesuffix(".service"), []).append(host)
    shown = "; ".join(f"{model} on {', '.join(nodes)}" for model, nodes in runs.items())
    said = []
    if runs:
        said = [f"Started now, and not verified: {shown}."]
    elif not silent:
        said = ["Nothing is served now: no engine runs on any node."]
    elif len(silent) < len(hosts):
        said = ["No engine runs on the nodes that answer."]
    return " ".join(said + ([f"Not known: {', '.join(silent)} did not answer."] if silent else []))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "engines_left": engines_left,
            "rank_options": rank_options,
            "entry_arguments": launch.entry_arguments,
            "model_path": launch.model_path,
            "model_trees": launch.trees,
            "prepared_trees": launch.prepared,
            "trees_beside": launch.trees_beside,
            "engine_mounts": launch.mounts,
            "rank_ports": launch.rank_ports,
            "systemd_join": systemd_join,
            "masked": launch.masked,
        }
