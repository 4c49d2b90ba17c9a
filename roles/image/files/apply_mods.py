# SPDX-License-Identifier: Apache-2.0
"""Apply the mods of an image to its vLLM in the last layer of the build; standard library only.

    python3 apply_mods.py --mods-dir /mods [NAME...]

``/mods/plan.json`` names the patch of each mod for this vLLM, in order; the control node wrote it
(gb10.cluster.mods_plan), with the patches beside it.  For each mod: `git apply`, and when that fails,
`patch --fuzz=5`; when both fail, one message with the output of each.  Then its probe must pass, or
the files are restored.  A mod that is already applied is only probed.  The result is recorded, with
hashes, in /etc/gb10/mods.json.

This stays one file of its own instead of a verb of the node's program: the image's fingerprint covers
it, and a change elsewhere in the collection must not rebuild an image.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROBE_TIMEOUT_S = 900  # importing vLLM on an emulated processor takes minutes


class ModError(Exception):
    """Why the mods cannot be applied; the text is for the operator."""


def main(argv: list[str] | None = None) -> int:
    """Apply every mod of the plan, or report in one message why one cannot be applied."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", help="the mods that the plan must hold, in this order")
    parser.add_argument("--mods-dir", type=Path, required=True, help="holds plan.json")
    parser.add_argument("--site-packages", type=Path, help="default: where vllm is installed")
    parser.add_argument("--record", type=Path, default=Path("/etc/gb10/mods.json"))
    args = parser.parse_args(argv)
    try:
        plan = read_plan(args.mods_dir, args.names)
        site = args.site_packages or find_site_packages()
        check_version(plan["vllm_version"], installed_version(site))
        before = read_record(args.record)
        done = [apply_mod(mod, args.mods_dir, site, before) for mod in plan["mods"]]
        write_record(args.record, {**plan, "mods": done, "site_packages": str(site)})
    except ModError as problem:
        print(f"mods: {problem}", file=sys.stderr)
        return 1
    for mod in done:
        print(f"mods: {mod['name']} {mod['method']}, {len(mod['files'])} files, probe passed")
    return 0


def read_plan(mods_dir: Path, names: list[str]) -> dict[str, Any]:
    """Return the plan after checking each patch against the hash that the control node took."""
    path = mods_dir / "plan.json"
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModError(
            f"{path} is missing in the build context; gb10.cluster's mods.plan_document writes it."
        ) from None
    except json.JSONDecodeError as problem:
        raise ModError(f"{path} is not valid JSON: {problem}.") from None
    planned = [mod["name"] for mod in plan["mods"]]
    if names and names != planned:
        raise ModError(
            f"The image wants the mods {', '.join(names)}, but {path} holds "
            f"{', '.join(planned) or 'none'}; plan the build again."
        )
    for mod in plan["mods"]:
        effect = {"name": mod["name"], "patch": patch_text(mods_dir, mod), "probe": mod["probe"]}
        digest = hashlib.sha256(json.dumps(effect, sort_keys=True).encode()).hexdigest()
        if digest != mod["sha256"]:
            raise ModError(
                f"{mod['name']}: {mod['patch_path'] or 'the probe'} has the hash {digest[:12]}, "
                f"but {mod['sha256'][:12]} was planned; plan the build again."
            )
    return plan


def patch_text(mods_dir: Path, mod: dict[str, Any]) -> str:
    """Return a mod's patch; empty for a mod that only checks."""
    if not mod["patch_path"]:
        return ""
    path = mods_dir / mod["patch_path"]
    try:
        text: str = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        raise ModError(f"{mod['name']}: {path} is not in the build context.") from None
    return text


def find_site_packages() -> Path:
    """Return the directory that holds the vllm package, without importing it."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise ModError(f"{sys.executable} finds no vllm package: the layer with vLLM must come before the mods.")
    return Path(next(iter(spec.submodule_search_locations))).resolve().parent


def installed_version(site: Path) -> str:
    """Return the version in vLLM's metadata in this directory."""
    found = list(importlib.metadata.distributions(name="vllm", path=[str(site)]))
    if not found:
        raise ModError(f"{site} holds no vllm-*.dist-info, so its version is unknown.")
    return str(found[0].version)


def check_version(planned: str, installed: str) -> None:
    """Raise ModError unless both name the same release; suffixes may differ."""
    release = re.compile(r"v?(\d+(?:\.\d+)*)")
    left, right = release.match(planned), release.match(installed)
    if not left or not right or left[1] != right[1]:
        raise ModError(
            f"The patches were chosen for vLLM {planned}, but the image has {installed}; "
            "set vllm_version of the image in gb10_images to what its wheel is."
        )


def apply_mod(mod: dict[str, Any], mods_dir: Path, site: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Apply one mod and probe it; return its entry for the record."""
    recorded = {each["name"]: each for each in before.get("mods", [])}.get(mod["name"])
    if recorded is not None and recorded["sha256"] != mod["sha256"]:
        raise ModError(
            f"{mod['name']}: this image already has it with the hash {recorded['sha256'][:12]}, not "
            f"{mod['sha256'][:12]}; build from the layer without mods instead of on top."
        )
    kept: dict[str, bytes | None] = {}
    if not mod["patch_path"]:
        method = "needs no patch"
    else:
        patch = (mods_dir / mod["patch_path"]).resolve()
        # A later mod may have changed the same lines, so the record counts as much as the files.
        if recorded is not None or is_applied(patch, site):
            method = "already applied"
        else:
            for name in mod["files"]:
                target = site / name
                kept[name] = target.read_bytes() if target.is_file() else None
            try:
                method = f"applied with {apply_patch(mod['name'], patch, site)}"
            except ModError:
                restore(kept, site)
                raise
    try:
        probe(mod, site)
    except ModError:
        restore(kept, site)
        raise
    return {key: mod[key] for key in ("name", "vllm", "files", "sha256")} | {"method": method}


def is_applied(patch: Path, site: Path) -> bool:
    """Return whether the tree already contains the patch: it can be reversed cleanly."""
    for command in (
        ["git", "apply", "--reverse", "--check", "-p1", str(patch)],
        ["patch", *_PATCH, "--fuzz=0", "--reverse", "--dry-run", "-i", str(patch)],
    ):
        if shutil.which(command[0]) and run(command, site)[0] == 0:
            return True
    return False


_PATCH = ["-p1", "--force", "--no-backup-if-mismatch", "--reject-file=-"]


def apply_patch(name: str, patch: Path, site: Path) -> str:
    """Apply a patch completely or not at all, and return the tool that applied it."""
    attempts = (
        (
            "git apply",
            ["git", "apply", "--check", "--verbose", "-p1", str(patch)],
            ["git", "apply", "-p1", "--whitespace=nowarn", str(patch)],
        ),
        (
            "patch --fuzz=5",
            ["patch", *_PATCH, "--fuzz=5", "--dry-run", "-i", str(patch)],
            ["patch", *_PATCH, "--fuzz=5", "-i", str(patch)],
        ),
    )
    said = []
    for tool, check, act in attempts:
        if shutil.which(check[0]) is None:
            said.append(f"--- {tool}:\n{check[0]} is not installed in this image")
            continue
        code, output = run(check, site)
        if code == 0:
            code, output = run(act, site)
        if code == 0:
            return tool
        said.append(f"--- {tool} (exit code {code}):\n{output.strip()}")
    raise ModError(
        f"{name}: {patch.name} does not apply to the vLLM in {site}; both tools rejected it. Rebase the "
        "patch on the source of this version, or use the version that it was made for.\n" + "\n".join(said)
    )


def run(command: list[str], site: Path) -> tuple[int, str]:
    """Run a command in site-packages and return its exit code and its output."""
    # In a repository above site-packages, git apply would silently skip what a `diff --git` names.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env.update(GIT_CEILING_DIRECTORIES=str(site.resolve().parent), LC_ALL="C.UTF-8")
    done = subprocess.run(
        command,
        cwd=site,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def probe(mod: dict[str, Any], site: Path) -> None:
    """Raise ModError unless the mod's probe exits with 0 against this tree."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), env.get("PYTHONPATH", "")]))
    command = [sys.executable, "-c", mod["probe"]]
    try:
        done = subprocess.run(
            command,
            cwd="/",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModError(f"{mod['name']}: its probe took longer than {PROBE_TIMEOUT_S} s.") from None
    if done.returncode != 0:
        raise ModError(
            f"{mod['name']}: its probe failed with exit code {done.returncode}, so the mod has not "
            f"taken effect; the files were restored.\n{done.stdout.strip()[-3000:]}"
        )


def restore(kept: dict[str, bytes | None], site: Path) -> None:
    """Restore what apply_mod kept; a file that was not there before goes away."""
    for name, content in kept.items():
        if content is None:
            (site / name).unlink(missing_ok=True)
        else:
            (site / name).write_bytes(content)


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of an earlier run, or an empty one."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as problem:
        raise ModError(f"{path} is not valid JSON ({problem}): remove it and build again.") from None
    return found


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record beside its place and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".mods-")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(record, stream, indent=2)
        stream.write("\n")
    Path(name).chmod(0o644)
    Path(name).replace(path)


if __name__ == "__main__":
    sys.exit(main())
