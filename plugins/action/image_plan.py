# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.image_plan: what is built, from which files, under which fingerprint."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
from ansible.plugins.filter.core import quote

from ansible_collections.gb10.cluster.plugins.module_utils._image import remote
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import file_sha256
from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._image import locks
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mod_files
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods as mods_logic

_ROOT = Path(__file__).parents[2]
_TEMPLATE = _ROOT / "roles" / "image" / "templates" / "Dockerfile.j2"
_APPLY = _ROOT / "roles" / "image" / "files" / "apply_mods.py"

#: Stands for the fingerprint when files that it is computed from are missing on this machine.
_UNBUILT = "unbuilt"


def _tree(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


class ActionModule(ControlNodeAction):
    """Resolve a recipe, check its wheels, and lay out the build context by links."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result, args = self.begin(tmp, task_vars, "image_plan")
        for name, folder in (("mods_dir", "mods"), ("overlays_dir", "overlays"), ("locks_dir", "locks")):
            args[name] = args[name] or str(_ROOT / folder)
        plan, errors = self._plan(args)
        if errors:
            result.update(failed=True, errors=errors, msg="\n".join(errors))
            return result
        result.update(changed=False, image_plan=plan)
        return result

    def _plan(self, args: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        recipe, errors = image_recipe.resolve(args["images"], args["name"])
        if errors:
            return {}, errors
        # An image whose files are missing on this machine can be shown, but not built.
        missing: list[str] = []
        wheels_dir = Path(args["wheels_dir"])
        present = sorted(path.name for path in wheels_dir.glob("*.whl")) if wheels_dir.is_dir() else []
        if any(step["wheels"] for step in recipe["steps"]) and not present:
            missing.append(
                f"There are no wheels in {wheels_dir} on the control node: put those of image "
                f"'{args['name']}' there, or set gb10_wheels_dir."
            )
            if args["require_wheels"]:
                return {}, missing
        notes: list[str] = []
        steps: list[dict[str, Any]] = []
        for step in recipe["steps"]:
            if not step["address"]:
                steps.append(step)
                continue
            wheel_step, note = image_recipe.by_address(step, present, str(args["digests"].get(step["address"], "")))
            steps += [wheel_step] if wheel_step else []
            notes += [f"gb10_images.{args['name']}: {note}"] if note else []
        recipe["steps"] = steps
        context: dict[str, Path] = {}
        # Wheels of a lock are not hashed here: pip compares them with the lock, which is.
        locked: dict[str, Path] = {}
        download = 0
        for step in recipe["steps"]:
            where = f"gb10_images.{args['name']}, step {step['name']}"
            if step["lock"]:
                path = Path(args["locks_dir"]) / locks.lock_name(step)
                context[f"locks/{step['name']}/lock.txt"] = path
                found, size, problems = self._locked(path, wheels_dir)
                errors += [f"{where}: {problem}" for problem in problems]
                locked.update({f"wheels/{step['name']}/{file.name}": file for file in found})
                download += size
            chosen, absent = image_recipe.choose_wheels(step, present, where) if present else ([], [])
            missing += absent
            context.update({f"wheels/{step['name']}/{file}": wheels_dir / file for file in chosen})
            for overlay in step["overlays"]:
                path = Path(args["overlays_dir"]) / overlay
                if not path.is_file():
                    errors.append(f"{where}: overlay {overlay} is not in {args['overlays_dir']}.")
                context[f"overlays/{overlay}"] = path
        if args["mods"]:
            context["mods/apply_mods.py"] = _APPLY
        mods: list[dict[str, Any]] = []
        try:
            known = mod_files.load_mods([args["mods_dir"]])
            mods = mods_logic.mods_plan(
                known, args["mods"], str(recipe["vllm_upstream"] or recipe["vllm_version"] or "")
            )
            for mod in args["mods"]:
                folder = mod_files.mod_directory(mod, [args["mods_dir"]])
                context.update({f"mods/{mod}/{name}": path for name, path in _tree(folder).items()})
        except mods_logic.ModsError as problem:
            errors += problem.errors
        archive = Path(recipe["base_archive"]).expanduser().resolve() if recipe["base_archive"] else None
        if archive is not None and not archive.is_file():
            missing.append(f"gb10_images.{args['name']}.base_archive {archive} does not exist on the control node.")
        digest = ""
        reference = remote.parse(recipe["base"])
        if archive is None:
            if reference is None:
                errors.append(
                    f"gb10_images.{args['name']}: '{recipe['base']}' is not an image reference such as "
                    "nvidia/cuda:13.2.0-devel-ubuntu24.04."
                )
            else:
                digest = reference.digest or str(args["digests"].get(recipe["base"], ""))
        if args["require_wheels"]:
            errors += missing
        if errors:
            return {}, errors
        unresolved = archive is None and not digest
        if unresolved and not args["require_wheels"]:
            missing.append(f"The digest of {recipe['base']} is not recorded yet; the first run of site.yml records it.")
        unbuilt = unresolved or bool(missing)
        # Wheels are gigabytes: hashing them is of use only when all of them are there.
        to_hash = [] if unbuilt else [*context.values(), *([archive] if archive else [])]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            digests = dict(zip(to_hash, pool.map(file_sha256, to_hash), strict=True))
        hashes = {name: digests[path] for name, path in context.items() if path in digests}
        for step in recipe["steps"]:
            where = f"gb10_images.{args['name']}, step {step['name']}"
            by_file = {name.rsplit("/", 1)[1]: digest for name, digest in hashes.items()}
            errors += image_recipe.wrong_hashes(step, by_file, where)
        if errors:
            return {}, errors
        base = recipe["base"]
        if archive is not None:
            base = f"gb10/base:{_UNBUILT if unbuilt else digests[archive][:12]}"
        elif reference is not None and digest:
            base = remote.Reference(reference.host, reference.name, reference.tag, digest).pinned
        template = jinja2.Environment(
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,
        )
        template.filters["quote"] = quote
        source = template.from_string(_TEMPLATE.read_text(encoding="utf-8"))
        mods_plan = mods_logic.plan_document(mods, str(recipe["vllm_version"] or "")) if mods else ""
        variables = {**recipe, "base": base, "mods": args["mods"], "labels": mods_logic.plan_labels(mods)}
        mark = _UNBUILT
        if not unbuilt:
            parts = {"dockerfile": source.render(**variables, fingerprint=""), "files": hashes, "mods": mods_plan}
            mark = image_recipe.fingerprint(parts)
        dockerfile = source.render(**variables, fingerprint=mark)
        context |= locked
        if args["context_dir"] and not unbuilt and not self._task.check_mode:
            texts = {"Dockerfile": dockerfile, **({"mods/plan.json": mods_plan} if mods else {})}
            folders = [f"wheels/{step['name']}" for step in recipe["steps"] if step["lock"]]
            self._lay_out(Path(args["context_dir"]), context, texts, folders)
        return {
            "name": recipe["name"],
            "tag": f"gb10/{recipe['name']}:{mark[:12]}",
            "fingerprint": mark,
            "base": base,
            "base_archive": str(archive) if archive else None,
            # The tag that has to keep its digest; empty when the recipe itself names a digest or an archive.
            "reference": recipe["base"] if archive is None and reference is not None and not reference.digest else "",
            "digest": digest,
            "python": f"{recipe['venv']}/bin/python" if recipe["venv"] else recipe["python"],
            "dockerfile": dockerfile,
            "files": hashes,
            "wheels": sorted({name.rsplit("/", 1)[1] for name in context if name.startswith("wheels/")}),
            "context_dir": args["context_dir"],
            "context_mib": round(sum(path.stat().st_size for path in context.values()) / 2**20, 1),
            "download_mib": round(download / 2**20, 1),
            "mods": args["mods"],
            "probes": {mod["name"]: mod["probe"] for mod in mods},
            "assertions": recipe["assertions"],
            "vllm_version": recipe["vllm_version"] or "",
            "vllm_upstream": recipe["vllm_upstream"] or "",
            "pulled": bool(recipe["pull"]),
            "source": recipe["source"],
            "missing": missing,
            "notes": notes,
        }, []

    @staticmethod
    def _locked(path: Path, wheels_dir: Path) -> tuple[list[Path], int, list[str]]:
        """Return (wheels of a lock that are all in a directory, bytes to download otherwise, sentences)."""
        try:
            wheels = locks.parse(path.read_text(encoding="utf-8"))
        except OSError:
            return [], 0, [f"there is no lock {path}; write it with `make lock-images`."]
        except locks.LockError as problem:
            return [], 0, [f"{path}, {problem}"]
        present = [wheel for wheel in wheels if (wheels_dir / wheel.file).is_file()]
        problems = [
            f"{wheel.file} has {found} bytes, the lock says {wheel.size}: it is incomplete or another file. Remove it "
            f"from {wheels_dir}, or download it again."
            for wheel in present
            if (found := (wheels_dir / wheel.file).stat().st_size) != wheel.size
        ]
        if len(present) < len(wheels):
            return [], sum(wheel.size for wheel in wheels), problems
        return [wheels_dir / wheel.file for wheel in wheels], 0, problems

    @staticmethod
    def _lay_out(folder: Path, context: dict[str, Path], texts: dict[str, str], folders: list[str]) -> None:
        """Create the build context as links to the files, so that nothing is copied on the control node."""
        if folder.exists():
            shutil.rmtree(folder)
        for name in folders:
            (folder / name).mkdir(parents=True)
        for name, path in context.items():
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
