# SPDX-License-Identifier: Apache-2.0
"""Filters that turn a model's list of mods into what an image build applies and carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mod_files
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods as mods_logic


def _directories(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(each) for each in value]


def mods_plan(
    names: Sequence[str], vllm_version: str, mods_dir: str | Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Return the plan of an image build; ``src`` is the patch on the control node."""
    directories = _directories(mods_dir)
    try:
        known = mod_files.load_mods(directories)
        plan = mods_logic.mods_plan(known, [str(name) for name in names], str(vllm_version))
        for entry in plan:
            inner = str(entry["patch_path"]).removeprefix(f"{entry['name']}/")
            folder = mod_files.mod_directory(entry["name"], directories)
            entry["src"] = str(folder / inner) if inner else ""
    except mods_logic.ModsError as problem:
        raise AnsibleFilterError("\n".join(problem.errors)) from problem
    return plan


def mods_labels(plan: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the labels of an image that this plan was applied to."""
    return mods_logic.plan_labels(plan)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"mods_plan": mods_plan, "mods_labels": mods_labels}
