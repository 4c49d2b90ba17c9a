# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.model_choice: what the command line and the inventory name, and what the head has."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.inventory.helpers import get_group_vars
from ansible.plugins.action import ActionBase
from ansible.utils.vars import combine_vars, load_extra_vars

from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._choice import model as choosing
from ansible_collections.gb10.cluster.plugins.plugin_utils._choice.text import given_as_text
from ansible_collections.gb10.cluster.plugins.plugin_utils._documented import argument_spec

_ROOT = Path(__file__).parents[2]
#: Ten times as fast where PyYAML has it.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

# Ansible runs each task of each host in a process forked from this one, and asks for a filter in all files of filters.
# Imported here, by the first task of almost every run, they are not imported again by each task that uses one.
for _file in (_ROOT / "plugins" / "filter").glob("*.py"):
    import_module(f"ansible_collections.gb10.cluster.plugins.filter.{_file.stem}")


def variables_of(folders: Iterable[Path]) -> dict[str, frozenset[str]]:
    """Return, by group, the variables that the files of the known models set; of one that cannot be read, none."""
    found: dict[str, frozenset[str]] = {}
    for path in [path for folder in folders for path in sorted(folder.glob("model_*.y*ml"))]:
        try:
            document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except (OSError, ValueError, yaml.YAMLError):
            document = {}
        names = frozenset(map(str, document)) if isinstance(document, dict) else frozenset()
        found[path.stem] = found.get(path.stem, frozenset()) | names
    return found


class ActionModule(ActionBase):  # type: ignore[misc, unused-ignore]
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the choice, or fail with both names."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(argument_spec=argument_spec("model_choice"))
        if wrong := given_as_text():
            return {**result, "failed": True, "msg": wrong}
        known = task_vars or {}
        heads = (known.get("groups") or {}).get("head", [])
        if len(heads) > 1:
            return {**result, "failed": True, "msg": ms.head_error(heads)}
        extra = load_extra_vars(self._loader)
        named = str(extra.get("model_name") or extra.get("model") or "")
        head = self._ask(known) if args["ask"] and not named and not args["recipe"] else None
        folders = [_ROOT / "playbooks" / "group_vars", *map(Path, args["catalogue"])]
        choice = (
            choosing.Choice(source="a recipe")
            if args["recipe"]
            else choosing.choose(named, self._own(known), head, variables_of(folders))
        )
        if choice.error:
            return {**result, "failed": True, "msg": choice.error}
        placed = bool(choosing.PLACING & extra.keys())
        result.update(
            changed=False,
            choice={
                "model": choice.model,
                "source": choice.source,
                "group": ms.group_name(choice.model),
                "record": dict(head.record) if head and not placed else {},
                "recorded": dict(head.record) if head else {},
                "asked": head is not None and not head.problem,
            },
        )
        return result

    def _ask(self, known: dict[str, Any]) -> choosing.Head:
        """Return what the head has on record, or why it could not be asked.

        :raises AnsibleActionFail: it was reached, and its record could not be read.
        """
        name = str(self._task.delegate_to or known["inventory_hostname"])
        address = known["hostvars"][name].get("ansible_host", name)
        if ms.placeholder_errors({name: address}):
            return choosing.Head(name, {}, "its address is a placeholder")
        try:
            answer: dict[str, Any] = self._execute_module(task_vars=known)
        except AnsibleConnectionFailure as error:
            return choosing.Head(name, {}, " ".join(str(error).split())[:200])
        if answer.get("failed"):
            raise AnsibleActionFail(
                f"{name}: what was last verified cannot be read ({answer.get('msg')}). Name the model: -e model=<name>."
            )
        return choosing.Head(name, answer.get("record") or {})

    def _own(self, known: dict[str, Any]) -> str:
        """Return the model that the inventory names, whatever the command line says."""
        host = known["hostvars"]._inventory.get_host(known["inventory_hostname"])
        return str(combine_vars(get_group_vars(host.get_groups()), host.get_vars()).get("model") or "")
