# SPDX-License-Identifier: Apache-2.0
"""Write the locks of the image catalogue: `make lock-images` (needs uv on the PATH).

Each step with ``lock: true`` is resolved together with all steps below it, for aarch64 and CPython 3.12, from wheels
alone; its lock holds what the step adds.  A step with ``replaces: true`` overrides what other distributions ask for.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

REPO = Path(__file__).resolve().parents[1]
for _path in (REPO / ".collections", REPO):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils._image.locks import (  # noqa: E402
    Wheel,
    added,
    lock_name,
    text_of,
)

LOCKS = REPO / "locks"
PLATFORM = "aarch64-manylinux_2_35"  # a subset of what the images' Ubuntu 24.04 (glibc 2.39) runs
PYTHON = (3, 12)
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(35, 16, -1)] + ["manylinux2014_aarch64"]


def tags_of(python: tuple[int, int]) -> dict[Tag, int]:
    """Return the tags of wheels that a CPython on the images' platform takes, each with its place, the best first."""
    own = f"cp{python[0]}{python[1]}"
    tags = [*cpython_tags(python, platforms=PLATFORMS), *compatible_tags(python, own, PLATFORMS)]
    return {tag: place for place, tag in enumerate(tags)}


_TAGS = tags_of(PYTHON)


def catalogue() -> dict[str, Any]:
    """Return the image catalogue with its pins filled in."""
    text = (REPO / "playbooks" / "group_vars" / "all" / "images.yml").read_text(encoding="utf-8")
    pins = yaml.safe_load(text)["gb10_pins"]
    filled = re.sub(r"\{\{ gb10_pins\.(\w+) \}\}", lambda match: str(pins[match[1]]), text)
    images: dict[str, Any] = yaml.safe_load(filled)["gb10_images"]
    return images


def best_wheel(package: Mapping[str, Any]) -> Wheel:
    """Return the wheel of a package in pylock.toml that pip prefers on this platform.

    :raises ValueError: no wheel fits.
    """
    fitting = []
    for wheel in package.get("wheels", []):
        file = wheel.get("name") or wheel["url"].rpartition("/")[2].replace("%2B", "+")
        places = [_TAGS[tag] for tag in parse_wheel_filename(file)[3] if tag in _TAGS]
        if places:
            fitting.append((min(places), wheel))
    if not fitting:
        raise ValueError(f"{package['name']} {package['version']} has no wheel for {PLATFORM}")
    found = min(fitting, key=lambda each: each[0])[1]
    name = canonicalize_name(package["name"])
    return Wheel(name, package["version"], found["hashes"]["sha256"], found["url"], int(found["size"]))


def resolve(requirements: list[str], overrides: list[str], pins: list[Wheel], work: Path) -> list[Wheel]:
    """Return the wheels that satisfy requirements, keeping earlier pins where that is possible."""
    (work / "in").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    (work / "overrides").write_text("\n".join(overrides) + "\n", encoding="utf-8")
    # uv prefers the versions that its output file has already.
    (work / "pylock.toml").unlink(missing_ok=True)
    (work / "prefer").write_text("".join(f"{pin.name}=={pin.version}\n" for pin in pins), encoding="utf-8")
    (work / "out.txt").write_text((work / "prefer").read_text(encoding="utf-8"), encoding="utf-8")
    command = ["uv", "pip", "compile", "--quiet", "--no-build", "--no-header", "--no-annotate"]
    command += ["--python-platform", PLATFORM, "--python-version", ".".join(map(str, PYTHON))]
    command += ["--overrides", str(work / "overrides"), str(work / "in")]
    subprocess.run([*command, "--output-file", str(work / "out.txt")], check=True)
    exact = (work / "out.txt").read_text(encoding="utf-8")
    (work / "in").write_text(exact, encoding="utf-8")
    subprocess.run([*command, "--no-deps", "--format", "pylock.toml", "-o", str(work / "pylock.toml")], check=True)
    packages = tomllib.loads((work / "pylock.toml").read_text(encoding="utf-8"))["packages"]
    return [best_wheel(package) for package in packages]


def lock_image(images: Mapping[str, Any], name: str, work: Path) -> dict[str, str]:
    """Return file name → text of the locks of an image and of those that it continues."""
    recipe, errors = image_recipe.resolve(images, name)
    if errors:
        raise ValueError("\n".join(errors))
    locks: dict[str, str] = {}
    wanted: dict[str, str] = {}
    overrides: dict[str, str] = {}
    below: list[Wheel] = []
    for step in recipe["steps"]:
        if not step["lock"]:
            continue
        for requirement in step["requirements"]:
            key = re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]
            (overrides if step["replaces"] else wanted)[key] = requirement
        now = resolve(list(wanted.values()), list(overrides.values()), below, work)
        title = f"Image {step['image']}, step {step['name']}: {', '.join(step['requirements'])}; aarch64, CPython 3.12."
        locks[lock_name(step)] = text_of(title, added(below, now))
        below = now
    return locks


def main() -> int:
    """Write every lock, or those of the images named; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--image", action="append", help="only this image of the catalogue, and what it continues")
    args = parser.parse_args()
    images = catalogue()
    LOCKS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.image or images:
            for file, text in lock_image(images, name, Path(folder)).items():
                (LOCKS / file).write_text(text, encoding="utf-8")
                print(f"locks/{file}: {text.splitlines()[1][2:]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
