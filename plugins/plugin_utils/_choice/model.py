# SPDX-License-Identifier: Apache-2.0
"""Which model a run acts on: the one that it names, else the one that was last verified, else the inventory's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine.record import RECORD
from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import group_name
from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import shaped

#: ``-e model=inventory`` asks for the model that the inventory names.
INVENTORY = "inventory"
#: Variables of a command line that change where and how a model is served.
PLACING = frozenset({"engine", "model_engine", "model_overrides", "model_spec", "nodes", "placement"})


@dataclass(frozen=True)
class Choice:
    """A model, and in words where its name is from; or an error, and no model."""

    model: str = ""
    source: str = ""
    error: str = ""


@dataclass(frozen=True)
class Head:
    """What the head answered: its name, the record of what was last verified, or why it gave none."""

    name: str
    record: Mapping[str, Any]
    problem: str = ""


def choose(named: str, own: str, head: Head | None, variables: Mapping[str, frozenset[str]]) -> Choice:
    """Return the model of a run.

    :param named: what the command line names; empty for nothing.
    :param own: what the inventory names.
    :param head: None when it was not asked.
    :param variables: by group (``model_x``), the variables that the file of each known model sets.
    """
    if named == INVENTORY:
        if not own:
            return Choice(
                error="-e model=inventory: the inventory names no model. Write `model: <name>` into hosts.yml."
            )
        return Choice(own, "the inventory, as -e model=inventory says")
    if named:
        return Choice(named, "-e model")
    if head is None:
        return Choice(own, "the inventory")
    if head.problem:
        return Choice(own, f"the inventory; {head.name} could not be asked what was last verified: {head.problem}")
    recorded = str(shaped(head.record, RECORD)["model"])
    if not recorded:
        return Choice(own, f"the inventory; nothing was verified on {head.name} yet")
    if group_name(recorded) == group_name(own):
        return Choice(own, f"the inventory; it is what was last verified on {head.name}")
    error = _cannot_use(recorded, own, variables)
    if error:
        return Choice(
            error=f"{head.name} last verified '{recorded}', and the inventory names '{own}'. {error} Nobody named a "
            f"model for this run: give -e model=<name> (or -e recipe=), or -e model=inventory for '{own}'."
        )
    return Choice(
        recorded, f"what was last verified on {head.name}; the inventory names '{own}' (-e model=inventory for that)"
    )


def _cannot_use(recorded: str, own: str, variables: Mapping[str, frozenset[str]]) -> str:
    """Return why the variables of the recorded model cannot take the place of those of the inventory's."""
    if group_name(recorded) not in variables:
        return f"'{recorded}' has no file {group_name(recorded)}.yml here."
    left = variables.get(group_name(own), frozenset()) - variables[group_name(recorded)]
    if left:
        return (
            f"{group_name(own)}.yml sets {', '.join(sorted(left))}, which {group_name(recorded)}.yml does not, and "
            "which would be in force for it too."
        )
    return ""


def placement_error(record: Mapping[str, Any], plan: Mapping[str, Any], head: str) -> str:
    """Return a sentence when a plan serves the recorded model elsewhere, or by another engine; else nothing."""
    if not record or record.get("model") != plan["model"]:
        return ""

    def shown(members: Any, engine: Any) -> str:
        return f"{len(members)} node(s) ({', '.join(map(str, members))})" + (f" with {engine}" if engine else "")

    record = shaped(record, RECORD)
    members, engine = record["members"] or plan["members"], record["engine"]
    planned = plan["spec"]["engine"] if engine else ""
    if (list(members), engine) == (list(plan["members"]), planned):
        return ""
    return (
        f"{head} last verified '{plan['model']}' on {shown(members, engine)}; the inventory plans it on "
        f"{shown(plan['members'], planned)}. Nobody named this for the run: give -e model={plan['model']} for what the "
        "inventory plans, or restore the inventory."
    )
