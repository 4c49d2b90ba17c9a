# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.plan: one word becomes one checked plan, and no host is contacted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.utils.vars import load_extra_vars

from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe
from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import sizes, source
from ansible_collections.gb10.cluster.plugins.plugin_utils._choice.model import placement_error
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes import importer
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import RecipeError
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import model_checks

_ROOT = Path(__file__).parents[2]


def changes(before: Mapping[str, Any], after: Mapping[str, Any], where: str = "") -> list[str]:
    """Return one line for each value that differs, e.g. ``serve.max-num-seqs: 6 -> 4``."""
    found: list[str] = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        here = f"{where}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changes(old, new, f"{here}.")
        elif old != new:
            shown = [json.dumps(each) if each is not None else "nothing" for each in (old, new)]
            found.append(f"{here}: {shown[0]} -> {shown[1]}")
    return found


def unwritten_overrides(extra: Mapping[str, Any], args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (those of the command line, those of what was last verified): overrides that are in no file.

    A command line that has some of its own, or names the model, does without those of what was last verified.

    :param extra: variables of the command line.
    :param args: ``model``, ``overrides`` and ``record`` of the task.
    """
    if "model_overrides" in extra:
        return dict(args["overrides"] or {}), {}
    record = args["record"] or {}
    return {}, dict(record.get("overrides") or {}) if record.get("model") == args["model"] else {}


class ActionModule(ControlNodeAction):
    """Resolve the chosen model against the catalogue, the overrides and the inventory."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        known_vars = task_vars or {}
        result, args = self.begin(tmp, task_vars, "plan")
        errors = self._read_recipe(args, result) or self._plan(args, known_vars, result)
        if errors:
            result.update(failed=True, errors=errors, msg="\n".join(errors))
        return result

    def _read_recipe(self, args: dict[str, Any], result: dict[str, Any]) -> list[str]:
        """Put the recipe of this run into the arguments, in place of the inventory's model."""
        if not args["recipe"]:
            return []
        if load_extra_vars(self._loader).get("model"):
            return ["-e recipe= and -e model= choose the model of this run twice; give one of them."]
        overrides = args["overrides"] or {}
        folders = [str(_ROOT / "playbooks" / "group_vars"), *args["catalogue"]]
        try:
            imported = importer.read_one(
                args["recipe"],
                importer.known_here(args["images"], folders, args["source_root"]),
                image=str(overrides.get("image") or ""),
            )
        except RecipeError as problem:
            return [str(problem)]
        args.update(model=imported.spec["name"], spec=imported.spec)
        result["recipe"] = importer.one(args["recipe"], imported)
        return []

    def _plan(self, args: dict[str, Any], known_vars: dict[str, Any], result: dict[str, Any]) -> list[str]:
        groups: dict[str, list[str]] = known_vars["groups"]
        hostvars = known_vars["hostvars"]
        nodes = {
            name: {
                "ansible_host": hostvars[name].get("ansible_host", name),
                "fabric_address": hostvars[name].get("gb10_fabric_address"),
            }
            for name in groups.get("gx10", [])
        }
        errors: list[str] = []
        if not nodes:
            errors.append(
                "Group 'gx10' is empty: the inventory names no node. Start from inventories/spark4/hosts.yml."
            )
        if not args["render_only"]:
            errors += ms.inventory_errors(nodes)

        if not args["model"] or not args["spec"]:
            files = [
                str(path)
                for folder in [_ROOT / "playbooks" / "group_vars", *args["catalogue"]]
                for path in sorted(Path(folder).glob("model_*.y*ml"))
            ]
            return [*errors, ms.unknown_model(args["model"], ms.names_from_files(files))]
        own, recorded = unwritten_overrides(load_extra_vars(self._loader), args)
        overrides = model_checks.engine_choice(args["overrides"] or {}, args["engine"])
        merged = ms.deep_merge(ms.deep_merge(args["spec"], overrides), recorded)
        spec, spec_errors = ms.validate(merged)
        errors += spec_errors
        if spec_errors:
            return errors
        if ms.group_name(spec["name"]) != ms.group_name(args["model"]):
            errors.append(f"model_spec.name is '{spec['name']}', but model '{args['model']}' was asked for.")
        errors += model_checks.context_errors(spec) + model_checks.code_errors(spec)
        vllm_version: Any = None
        upstream: Any = None
        if spec["image"] not in args["images"] and not image_recipe.by_reference(spec["image"]):
            near = ms.nearest(spec["image"], args["images"])
            hint = f" Did you mean '{near}'?" if near else ""
            errors.append(
                f"model_spec.image '{spec['image']}' is not in gb10_images.{hint} "
                f"Known: {', '.join(sorted(args['images']))}."
            )
        else:
            recipe, recipe_errors = image_recipe.resolve(args["images"], spec["image"])
            errors += recipe_errors
            vllm_version, upstream = recipe.get("vllm_version"), recipe.get("vllm_upstream")
            if not recipe_errors and not (vllm_version or upstream) and not recipe["pull"]:
                errors.append(
                    f"gb10_images.{spec['image']}.vllm_version is missing: neither options nor memory can be checked."
                )
        mods_dir = Path(args["mods_dir"] or _ROOT / "mods")
        known_mods = sorted(path.parent.name for path in mods_dir.glob("*/manifest.yml"))
        for mod in spec["mods"]:
            if mod not in known_mods:
                near = ms.nearest(mod, known_mods)
                hint = f" Did you mean '{near}'?" if near else ""
                errors.append(f"model_spec.mods has '{mod}', which is no mod.{hint} Known: {', '.join(known_mods)}.")
        members, idle, member_errors = ms.membership(spec, groups.get("head", []), groups.get("workers", []))
        errors += member_errors
        if errors:
            return errors
        # A node without a fabric has no peer: its own name may lead through a translation of addresses, or be none.
        addresses = {host: str(nodes[host]["fabric_address"] or "127.0.0.1") for host in members}
        result["plan"] = {
            "model": spec["name"],
            "spec": spec,
            "unit": f"vllm-{spec['name']}.service",
            "container": f"vllm-{spec['name']}",
            "members": members,
            "idle": idle,
            "head": members[0],
            "addresses": addresses,
            "head_address": addresses[members[0]],
            "api_url": f"http://{ms.in_url(nodes[members[0]]['ansible_host'])}:{spec['ports']['api']}",
            "multi_node": spec["nodes"] > 1,
            # Empty for an image of others whose version nobody has written down.
            "vllm_version": str(vllm_version or ""),
            "vllm_upstream": str(upstream or ""),
            "image_pulled": bool(recipe["pull"]),
            "overrides": own or recorded,
        }
        if moved := placement_error(args["record"], result["plan"], members[0]):
            del result["plan"]
            return [moved]
        result["warnings"] = model_checks.warnings(spec, result["plan"]["vllm_version"])
        if overrides or recorded:
            written = ms.validate(args["spec"])[0]
            said = f"As last verified, with the model_overrides of that run (-e model={spec['name']} leaves them out):"
            result["overridden"] = [said] * bool(recorded) + changes(written, spec)
            result["diff"] = {
                "before_header": "model_spec as written",
                "after_header": "model_spec of this run",
                "before": self._dump(written),
                "after": self._dump(spec),
            }
        if not args["render_only"]:
            result["sizes"] = sizes.complete(spec, lambda repo, revision: self._repository(repo, revision, args))
        result["changed"] = False
        return []

    @staticmethod
    def _repository(repo: str, revision: str, args: dict[str, Any]) -> source.Repository:
        """Return what a repository says of itself, from the control node's own copy where there is one.

        :raises RepositoryError: neither it nor the hub says anything.
        """
        own = Path(args["source_root"]).expanduser() / repo
        if args["source_root"] and (own / source.CONFIG).is_file():
            return source.read(str(own), "", "", "", args["source_root"])
        if not args["endpoint"]:
            raise source.RepositoryError(f"{own} does not exist, and no hub was named.")
        return source.read(repo, revision, args["endpoint"], args["token"], args["source_root"])

    @staticmethod
    def _dump(value: Any) -> str:
        return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"
