# SPDX-License-Identifier: Apache-2.0
"""Around ``gb10.cluster.memory_budget``: its arguments from a model, and the tightest of its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import MemoryModelError
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import tightest_of
from ansible_collections.gb10.cluster.plugins.plugin_utils._memory.spec import build_of
from ansible_collections.gb10.cluster.plugins.plugin_utils._memory.spec import memory_arguments as arguments_of
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import ServeError
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_files import load_image_table


def tightest(results: Sequence[Mapping[str, Any]], nodes: Sequence[str]) -> dict[str, Any]:
    """Return the verdict of the tightest node; see tightest.yml."""
    results, nodes = list(results), list(nodes)
    if len(results) != len(nodes):
        raise AnsibleFilterError(f"gb10.cluster.tightest: {len(results)} results for {len(nodes)} nodes.")
    try:
        return tightest_of(dict(zip(nodes, results, strict=True)))
    except ValueError as error:
        raise AnsibleFilterError(f"gb10.cluster.tightest: {error}") from error


def memory_arguments(
    spec: Mapping[str, Any], vllm_version: str, weights_root: str = "", image_table: str = ""
) -> dict[str, Any]:
    """Return the module's arguments for a model; see memory_arguments.yml."""
    try:
        said = load_image_table(image_table) or {} if image_table else None
        return arguments_of(spec, *build_of(vllm_version, said), weights_root)
    except ServeError as error:
        raise AnsibleFilterError("gb10.cluster.memory_arguments: " + " ".join(error.errors)) from error
    except MemoryModelError as error:
        raise AnsibleFilterError("gb10.cluster.memory_arguments: " + " ".join(error.problems)) from error
    except KeyError as error:
        raise AnsibleFilterError(f"gb10.cluster.memory_arguments: model_spec has no {error}.") from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"tightest": tightest, "memory_arguments": memory_arguments}
