# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.recipe: recipe files become the texts of model files; nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import owned
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes import importer
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import RecipeError

_OWN_MODELS = Path(__file__).parents[2] / "playbooks" / "group_vars"
_OWN_MODS = Path(__file__).parents[2] / "mods"


class ActionModule(ControlNodeAction):
    """Read recipes, and return the model file of each."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return ``models`` and ``report``, or the sentence why there is none."""
        result, args = self.begin(tmp, task_vars, "recipe")
        if not args["recipe"]:
            result.update(failed=True, msg="Name a recipe: -e recipe=<file, directory or <directory>:<recipe>>.")
            return result
        models_of = [str(_OWN_MODELS), *args["catalogue"]]
        known = importer.known_here(args["images"], models_of, args["source_root"], writes_mods=True)
        try:
            rows = importer.read_all(args["recipe"], known, args["name"], args["image"])
            own = ms.names_from_files([str(path) for path in _OWN_MODELS.glob("model_*.yml")])
            models, rows = importer.files_of(rows, Path(args["directory"]), own)
            mods = importer.mods_of(rows, Path(args["mods_dir"] or _OWN_MODS))
        except RecipeError as problem:
            result.update(failed=True, msg=str(problem))
            return result
        for file in [*models, *mods]:
            file["content"] = owned.seal(file["content"])
        result.update(changed=False, models=models, mods=mods, report=importer.report(rows))
        return result
