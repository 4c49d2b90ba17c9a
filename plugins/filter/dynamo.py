# SPDX-License-Identifier: Apache-2.0
"""Jinja filters of the role dynamo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import render, spec
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files


def dynamo_target(specs: Sequence[Mapping[str, Any]], target: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return one target with its objects; see dynamo_target.yml."""
    try:
        return render.described(spec.chosen(specs, target, settings, serve_files.load_tables()))
    except spec.DynamoError as error:
        raise AnsibleFilterError("\n".join(error.problems)) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"dynamo_target": dynamo_target}
