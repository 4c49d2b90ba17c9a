# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.image_wheels: download the wheels that the locks of an image name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import MIB
from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._image import download, locks

_LOCKS = Path(__file__).parents[2] / "locks"


class ActionModule(ControlNodeAction):
    """Compare a directory with the locks of an image, and download what is missing."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return which files were downloaded, or one sentence for each problem."""
        result, args = self.begin(tmp, task_vars, "image_wheels")
        wheels, addresses, errors = self._wheels(args)
        folder = Path(args["wheels_dir"])
        missing = download.missing(wheels, folder)
        absent = [url for url in addresses if not (folder / image_recipe.wheel_file(url)).is_file()]
        names = [*(wheel.file for wheel in missing), *map(image_recipe.wheel_file, absent)]
        mib = round(sum(wheel.size for wheel in missing) / MIB, 1)
        result.update(changed=bool(names), files=names, mib=mib, digests={})
        if not errors and names and not self._task.check_mode:
            folder.mkdir(parents=True, exist_ok=True)
            problem = download.room_problem(missing, folder) if missing else ""
            errors = [problem] if problem else []
            errors = errors or download.download_all(missing, folder, args["mirror"], Display().display)
        if not errors and not self._task.check_mode:
            for url in addresses:
                known = "" if args["relock"] else str(args["digests"].get(url, ""))
                try:
                    result["digests"][url] = download.by_address(url, image_recipe.wheel_file(url), folder, known)
                except download.OtherFileError as failure:
                    errors.append(str(failure))
                except download.DownloadError as failure:
                    # The image can be built without it.
                    result.setdefault("warnings", []).append(str(failure))
        if errors:
            result.update(failed=True, errors=errors, msg="\n".join(errors))
        return result

    @staticmethod
    def _wheels(args: dict[str, Any]) -> tuple[list[locks.Wheel], list[str], list[str]]:
        """Return (wheels of the locks, addresses of wheels that are on no index, sentences)."""
        recipe, errors = image_recipe.resolve(args["images"], args["name"])
        wheels: list[locks.Wheel] = []
        for step in recipe.get("steps", []):
            path = Path(args["locks_dir"] or _LOCKS) / locks.lock_name(step)
            try:
                wheels += locks.parse(path.read_text(encoding="utf-8")) if step.get("lock") else []
            except (OSError, locks.LockError) as problem:
                errors.append(f"{path}: {problem}")
        addresses = [step["address"] for step in recipe.get("steps", []) if step.get("address")]
        return wheels, addresses, errors
