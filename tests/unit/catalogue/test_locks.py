# SPDX-License-Identifier: Apache-2.0
"""The locks of the image catalogue: one for each locked step, for this platform, complete; and what is not pinned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._image import locks
from scripts import lock_images

LOCKS = Path(__file__).resolve().parents[3] / "locks"
#: What a build may still choose itself, image.step, with the reason.
NOT_PINNED = {
    "vllm-node-s1.ray": "the packages of the source documents' image are not known by version",
    "vllm-node-s1.vllm": "as above; the wheels themselves are the owner's",
    "vllm-ray.ray": "is resolved against the packages inside NVIDIA's image, which are not known here",
}


def steps(images: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return image.step → step of every step of the catalogue."""
    found = {}
    for name in images:
        recipe, errors = image_recipe.resolve(images, name)
        assert not errors, errors
        found.update({f"{step['image']}.{step['name']}": step for step in recipe["steps"]})
    return found


def test_each_locked_step_has_its_lock_and_each_lock_its_step(images: dict[str, Any]) -> None:
    wanted = {locks.lock_name(step) for step in steps(images).values() if step["lock"]}
    assert wanted == {path.name for path in LOCKS.iterdir()}


def test_every_step_is_pinned_or_excused(images: dict[str, Any]) -> None:
    loose = {
        name
        for name, step in steps(images).items()
        if not step["lock"] and not all("==" in requirement for requirement in step["requirements"] or ["=="])
    }
    loose |= {name for name, step in steps(images).items() if step["wheels"] and "--no-deps" not in step["pip_args"]}
    assert loose == set(NOT_PINNED)


@pytest.mark.parametrize("path", sorted(LOCKS.glob("*.txt")), ids=lambda path: path.name)
def test_a_lock_names_wheels_of_this_platform(path: Path, images: dict[str, Any]) -> None:
    wheels = locks.parse(path.read_text(encoding="utf-8"))
    assert len({wheel.name for wheel in wheels}) == len(wheels) > 0
    for wheel in wheels:
        name, version, _build, tags = parse_wheel_filename(wheel.file)
        assert (canonicalize_name(name), str(version)) == (wheel.name, wheel.version)
        fitting = [tag for tag in tags if re.fullmatch(r"cp312|py2|py3\d*", tag.interpreter) or tag.abi == "abi3"]
        assert fitting, wheel.file
        assert all(tag.platform == "any" or tag.platform.endswith("_aarch64") for tag in tags), wheel.file
        assert wheel.url.startswith("https://files.pythonhosted.org/")
        assert wheel.size > 0
    (step,) = (step for step in steps(images).values() if step["lock"] and locks.lock_name(step) == path.name)
    pinned = {wheel.name: wheel.version for wheel in wheels}
    for text in step["requirements"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


def test_the_cumulative_locks_meet_the_assertions(images: dict[str, Any]) -> None:
    for name in ("vllm-node", "vllm-node-tf5", "vllm-node-mimo"):
        recipe, _errors = image_recipe.resolve(images, name)
        installed: dict[str, str] = {}
        for step in (step for step in recipe["steps"] if step["lock"]):
            text = (LOCKS / locks.lock_name(step)).read_text(encoding="utf-8")
            installed.update({wheel.name: wheel.version for wheel in locks.parse(text)})
        for distribution, wanted in recipe["assertions"].items():
            if distribution == "torch_cuda":
                continue
            # The index names the wheel without its local version, +cu130.
            plain = wanted.partition("+")[0]
            specifier = Requirement(f"x{plain}" if plain[0] in "<>=" else f"x=={plain}").specifier
            assert specifier.contains(installed[distribution]), (name, distribution)
        # The floor of NCCL on aarch64: NVIDIA/nccl#2353.
        assert tuple(map(int, installed["nvidia-nccl-cu13"].split("."))) >= (2, 29, 3)


def package(*files: str) -> dict[str, Any]:
    """Return a package as pylock.toml has it."""
    return {
        "name": "torch",
        "version": "2.11.0",
        "wheels": [{"url": f"https://x.org/{file}", "size": 7, "hashes": {"sha256": file}} for file in files],
    }


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        # A wheel for the platform before one for any.
        (["torch-2.11.0-py3-none-any.whl", "torch-2.11.0-cp312-cp312-manylinux_2_28_aarch64.whl"], 1),
        (["torch-2.11.0-cp38-abi3-manylinux_2_28_aarch64.whl", "torch-2.11.0-py3-none-any.whl"], 0),
        (["torch-2.11.0-cp311-cp311-manylinux_2_28_aarch64.whl", "torch-2.11.0-py3-none-any.whl"], 1),
        (["torch-2.11.0-cp312-cp312-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"], 0),
    ],
)
def test_the_wheel_that_pip_would_take_is_locked(files: list[str], chosen: int) -> None:
    assert lock_images.best_wheel(package(*files)).file == files[chosen]


@pytest.mark.parametrize(
    "file",
    [
        "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        "torch-2.11.0-cp313-cp313-manylinux_2_28_aarch64.whl",
        "torch-2.11.0-cp312-cp312-manylinux_2_39_aarch64.whl",
        "torch-2.11.0-cp312-cp312-musllinux_1_2_aarch64.whl",
    ],
)
def test_a_package_without_a_wheel_for_the_platform_is_named(file: str) -> None:
    with pytest.raises(ValueError, match=r"torch 2\.11\.0 has no wheel for aarch64-manylinux_2_35"):
        lock_images.best_wheel(package(file))
