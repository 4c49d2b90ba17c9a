# SPDX-License-Identifier: Apache-2.0
"""What an image is made of: its wheels, its fingerprint, its build context, and every reason to refuse it."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.action import image_plan
from ansible_collections.gb10.cluster.plugins.plugin_utils._image import locks

WHEEL = "vllm-0.32.0-py3-none-any.whl"
DIGEST = "sha256:" + "1" * 64
IMAGES: dict[str, Any] = {
    "vllm-node": {
        "base": "ubuntu:24.04",
        "vllm_version": "0.32.0",
        "steps": [
            {"name": "vllm", "wheels": ["vllm-0.32.0-*.whl"]},
            {"name": "torch", "requirements": ["torch==2.11.0"], "pip_args": ["--no-deps", "--force-reinstall"]},
        ],
        "assertions": {"torch": "2.11.0+cu130"},
    }
}


class Task:
    check_mode = False


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / WHEEL).write_bytes(b"wheel")
    return folder


def plan(tmp_path: Path, images: dict[str, Any], check: bool = False, **more: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the plan and the errors, as the plugin makes them of a task's arguments."""
    plugin = image_plan.ActionModule.__new__(image_plan.ActionModule)
    plugin._task = Task()
    plugin._task.check_mode = check
    arguments = {
        "name": "vllm-node",
        "images": images,
        "mods": [],
        "mods_dir": str(Path(image_plan.__file__).parents[2] / "mods"),
        "overlays_dir": str(tmp_path / "overlays"),
        "locks_dir": str(tmp_path / "locks"),
        "digests": {"ubuntu:24.04": DIGEST},
        "wheels_dir": str(tmp_path / "wheels"),
        "require_wheels": True,
        "context_dir": str(tmp_path / "context"),
        **more,
    }
    found: tuple[dict[str, Any], list[str]] = plugin._plan(arguments)
    return found


def changed(**step: Any) -> dict[str, Any]:
    """Return the images with other values in the first step."""
    images = copy.deepcopy(IMAGES)
    images["vllm-node"]["steps"][0].update(step)
    return images


def test_a_plan_and_its_context(tmp_path: Path, wheels: Path) -> None:
    found, errors = plan(tmp_path, IMAGES)
    assert errors == []
    assert found["tag"] == f"gb10/vllm-node:{found['fingerprint'][:12]}"
    assert found["files"] == {f"wheels/vllm/{WHEEL}": hashlib.sha256(b"wheel").hexdigest()}
    context = tmp_path / "context"
    assert (context / "wheels" / "vllm" / WHEEL).resolve() == (wheels / WHEEL).resolve()
    dockerfile = (context / "Dockerfile").read_text(encoding="utf-8")
    assert dockerfile == found["dockerfile"]
    assert f'gb10.fingerprint="{found["fingerprint"]}"' in dockerfile
    # torch is forced in a layer of its own, after vLLM.
    assert dockerfile.index("# vllm\n") < dockerfile.index("# torch\n") < dockerfile.index("torch==2.11.0")


def test_the_same_inputs_have_the_same_fingerprint(tmp_path: Path, wheels: Path) -> None:
    before = plan(tmp_path, IMAGES)[0]["fingerprint"]
    (wheels / "unrelated-1.0-py3-none-any.whl").write_bytes(b"x")
    assert plan(tmp_path, copy.deepcopy(IMAGES))[0]["fingerprint"] == before


@pytest.mark.usefixtures("wheels")
@pytest.mark.parametrize("what", ["wheel", "step", "base", "mod"])
def test_other_inputs_have_another_fingerprint(tmp_path: Path, what: str) -> None:
    before = plan(tmp_path, IMAGES)[0]["fingerprint"]
    images = copy.deepcopy(IMAGES)
    mods: list[str] = []
    if what == "wheel":
        (tmp_path / "wheels" / WHEEL).write_bytes(b"other")
    elif what == "step":
        images["vllm-node"]["steps"][1]["requirements"] = ["torch==2.11.1"]
    elif what == "base":
        images["vllm-node"]["base"] = "ubuntu:26.04"
    else:
        mods = ["gpu-mem-util-gb"]
    found, errors = plan(tmp_path, images, mods=mods)
    assert errors == []
    assert found["fingerprint"] != before


@pytest.mark.usefixtures("wheels")
def test_a_mod_is_the_last_layer(tmp_path: Path) -> None:
    found, errors = plan(tmp_path, IMAGES, mods=["gpu-mem-util-gb"])
    assert errors == []
    assert found["dockerfile"].index("apply_mods.py --mods-dir") > found["dockerfile"].index("torch==2.11.0")
    assert set(found["probes"]) == {"gpu-mem-util-gb"}
    assert (tmp_path / "context" / "mods" / "plan.json").is_file()


@pytest.mark.usefixtures("wheels")
def test_in_check_mode_nothing_is_laid_out(tmp_path: Path) -> None:
    assert plan(tmp_path, IMAGES, check=True)[1] == []
    assert not (tmp_path / "context").exists()


def test_a_base_that_is_a_file_is_named_by_its_bytes(tmp_path: Path, wheels: Path) -> None:
    del wheels
    (tmp_path / "base.tar").write_bytes(b"root")
    images = copy.deepcopy(IMAGES)
    images["vllm-node"]["base_archive"] = str(tmp_path / "base.tar")
    assert plan(tmp_path, images)[0]["base"] == f"gb10/base:{hashlib.sha256(b'root').hexdigest()[:12]}"
    (tmp_path / "base.tar").unlink()
    assert "base_archive" in plan(tmp_path, images)[1][0]


def test_no_wheels_at_all_are_named_with_the_way_out(tmp_path: Path) -> None:
    errors = plan(tmp_path, IMAGES)[1]
    assert len(errors) == 1
    assert errors[0].endswith("put those of image 'vllm-node' there, or set gb10_wheels_dir.")


def test_an_image_can_be_shown_without_its_wheels(tmp_path: Path) -> None:
    found, errors = plan(tmp_path, IMAGES, require_wheels=False)
    assert errors == []
    assert (found["tag"], len(found["missing"])) == ("gb10/vllm-node:unbuilt", 1)
    assert not (tmp_path / "context").exists()


@pytest.mark.usefixtures("wheels")
@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"wheels": ["vllm-0.33.0-*.whl"]}, "wheel vllm-0.33.0-*.whl is missing. Present is vllm-0.32.0"),
        ({"wheel_hashes": {WHEEL: "0" * 64}}, "it is another file"),
        ({"overlays": ["patch.py"]}, "overlay patch.py is not in"),
        ({"wheel": ["x"]}, "is not a known key. Did you mean 'wheels'"),
        ({"name": "Bad Name"}, "must be lower-case letters"),
        ({"address": "https://host/a%2Bb-1-py3-none-any.whl"}, "must be the address of one wheel, and the step's only"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_laid_out(tmp_path: Path, step: dict[str, Any], sentence: str) -> None:
    errors = plan(tmp_path, changed(**step))[1]
    assert any(sentence in error for error in errors), errors
    assert not (tmp_path / "context").exists()


@pytest.mark.usefixtures("wheels")
def test_a_mod_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert any("nope" in error for error in plan(tmp_path, IMAGES, mods=["nope"])[1])


def test_an_unknown_image_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    assert "Known: vllm-node" in plan(tmp_path, IMAGES, name="vllm-nod")[1][0]


# --- a wheel by address ----------------------------------------------------------------------------------------

ADDRESS = "https://host/x/kernels-1%2Bcu130-cp39-abi3-linux_aarch64.whl"
KERNELS = "kernels-1+cu130-cp39-abi3-linux_aarch64.whl"


def with_address() -> dict[str, Any]:
    images = copy.deepcopy(IMAGES)
    images["vllm-node"]["steps"].append({"name": "kernels", "address": ADDRESS, "without": "It costs 20 to 30 GB."})
    return images


def test_an_image_without_its_wheel_by_address_says_what_that_costs(tmp_path: Path, wheels: Path) -> None:
    plain = plan(tmp_path, IMAGES)[0]
    found, errors = plan(tmp_path, with_address())
    assert errors == []
    assert found["fingerprint"] == plain["fingerprint"]
    assert found["notes"] == [
        f"gb10_images.vllm-node: {KERNELS} is not on the control node. It costs 20 to 30 GB. "
        "playbooks/wheels.yml fetches it."
    ]
    (wheels / KERNELS).write_bytes(b"kernels")
    assert "is not recorded yet: run playbooks/wheels.yml" in plan(tmp_path, with_address())[0]["notes"][0]


def test_a_wheel_by_address_is_installed_with_its_recorded_hash(tmp_path: Path, wheels: Path) -> None:
    (wheels / KERNELS).write_bytes(b"kernels")
    digests = {"ubuntu:24.04": DIGEST, ADDRESS: "sha256:" + hashlib.sha256(b"kernels").hexdigest()}
    found, errors = plan(tmp_path, with_address(), digests=digests)
    assert (errors, found["notes"]) == ([], [])
    assert f"wheels/kernels/{KERNELS}" in found["files"]
    assert "--no-index --no-deps /wheels/*.whl" in found["dockerfile"]
    digests[ADDRESS] = "sha256:" + "1" * 64
    assert "it is another file" in plan(tmp_path, with_address(), digests=digests)[1][0]


# --- locked steps ----------------------------------------------------------------------------------------------

CONTENT = {"vllm-0.32.0-py3-none-any.whl": b"wheel", "torch-2.11.0-py3-none-any.whl": b"torch wheel"}
LOCKED: dict[str, Any] = {
    "vllm-node": {
        "base": "ubuntu:24.04",
        "vllm_version": "0.32.0",
        "steps": [{"name": "vllm", "requirements": ["vllm==0.32.0"], "lock": True}],
        "assertions": {},
    }
}


def write_lock(tmp_path: Path, text: str = "") -> Path:
    """Write the lock of the step of LOCKED."""
    wheels = [
        locks.Wheel(
            file.split("-", maxsplit=1)[0],
            file.split("-")[1],
            hashlib.sha256(data).hexdigest(),
            f"https://x.org/{file}",
            len(data),
        )
        for file, data in CONTENT.items()
    ]
    path = tmp_path / "locks" / "vllm-node.vllm.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text or locks.text_of("title", wheels), encoding="utf-8")
    return path


def test_a_locked_step_is_downloaded_or_taken_from_the_wheels_under_one_fingerprint(tmp_path: Path) -> None:
    write_lock(tmp_path)
    found, errors = plan(tmp_path, LOCKED)
    assert errors == []
    assert found["download_mib"] == round(sum(map(len, CONTENT.values())) / 2**20, 1)
    assert list((tmp_path / "context" / "wheels" / "vllm").iterdir()) == []
    assert (tmp_path / "context" / "locks" / "vllm" / "lock.txt").is_file()
    assert "--no-deps --require-hashes" in found["dockerfile"]
    # A part of the wheels is of no use: pip would ask the index for the others all the same.
    (tmp_path / "wheels").mkdir()
    for file, data in CONTENT.items():
        assert plan(tmp_path, LOCKED)[0]["tag"] == found["tag"]
        assert list((tmp_path / "context" / "wheels" / "vllm").iterdir()) == []
        (tmp_path / "wheels" / file).write_bytes(data)
    local, errors = plan(tmp_path, LOCKED)
    assert (errors, local["tag"], local["download_mib"]) == ([], found["tag"], 0.0)
    assert {path.name for path in (tmp_path / "context" / "wheels" / "vllm").iterdir()} == set(CONTENT)


def test_another_lock_is_another_image(tmp_path: Path) -> None:
    path = write_lock(tmp_path)
    before = plan(tmp_path, LOCKED)[0]["tag"]
    path.write_text(path.read_text(encoding="utf-8").replace("==2.11.0", "==2.12.0"), encoding="utf-8")
    assert plan(tmp_path, LOCKED)[0]["tag"] != before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no lock"),
        ("vllm==0.32.0\n", "line 1: 'vllm==0.32.0' is not a pinned requirement"),
        ("vllm==0.32.0 --hash=sha256:" + "0" * 64 + "\n", "line 1: vllm has no address above it"),
    ],
)
def test_a_lock_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        write_lock(tmp_path, text)
    _found, errors = plan(tmp_path, LOCKED)
    assert len(errors) == 1
    assert errors[0].startswith("gb10_images.vllm-node, step vllm: ")
    assert sentence in errors[0]


def test_an_incomplete_wheel_of_a_lock_is_refused(tmp_path: Path) -> None:
    write_lock(tmp_path)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "vllm-0.32.0-py3-none-any.whl").write_bytes(b"whe")
    _found, errors = plan(tmp_path, LOCKED)
    assert "vllm-0.32.0-py3-none-any.whl has 3 bytes, the lock says 5: it is incomplete or another file." in errors[0]


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"lock": True, "wheels": ["x.whl"]}, "is locked: give requirements, and none of wheels, pip_args and run."),
        ({"lock": True, "requirements": ["x"], "pip_args": ["-v"]}, "is locked: give requirements"),
        ({"replaces": True, "requirements": ["x"]}, ".replaces needs `lock: true`."),
    ],
)
def test_a_locked_step_is_nothing_else(tmp_path: Path, step: dict[str, Any], sentence: str) -> None:
    images = copy.deepcopy(LOCKED)
    images["vllm-node"]["steps"] = [{"name": "vllm", **step}]
    assert sentence in plan(tmp_path, images)[1][0]


# --- what is pulled --------------------------------------------------------------------------------------------


def pulled(reference: str, **more: Any) -> dict[str, Any]:
    """Return a catalogue with an image of a registry."""
    return {"vllm-node": {"pull": reference, "vllm_version": "0.30.0", "assertions": {"vllm": "0.30.0"}, **more}}


def test_a_pulled_image_is_its_digest_with_our_labels(tmp_path: Path) -> None:
    found, errors = plan(tmp_path, pulled("vllm/vllm-openai:v0.30.0"), digests={"vllm/vllm-openai:v0.30.0": DIGEST})
    assert errors == []
    lines = [line for line in found["dockerfile"].splitlines() if line and not line.startswith("#")]
    assert lines[0] == f"FROM vllm/vllm-openai@{DIGEST}"
    assert [line.split()[0] for line in lines[1:]] == ["LABEL"]
    assert (found["reference"], found["digest"]) == ("vllm/vllm-openai:v0.30.0", DIGEST)
    assert found["python"] == "python3"
    other, _errors = plan(
        tmp_path, pulled("vllm/vllm-openai:v0.30.0"), digests={"vllm/vllm-openai:v0.30.0": DIGEST[:-1] + "2"}
    )
    assert other["tag"] != found["tag"]


def test_a_digest_in_the_recipe_needs_no_lock(tmp_path: Path) -> None:
    found, errors = plan(tmp_path, pulled(f"nvcr.io/nvidia/vllm:26.05@{DIGEST}"), digests={})
    assert (errors, found["reference"]) == ([], "")
    assert f"FROM nvcr.io/nvidia/vllm@{DIGEST}\n" in found["dockerfile"]


def test_a_tag_without_a_digest_is_unbuilt(tmp_path: Path) -> None:
    found, errors = plan(tmp_path, pulled("vllm/vllm-openai:v0.30.0"), digests={})
    assert (errors, found["tag"], found["digest"]) == ([], "gb10/vllm-node:unbuilt", "")
    assert not (tmp_path / "context").exists()
    shown, errors = plan(tmp_path, pulled("vllm/vllm-openai:v0.30.0"), digests={}, require_wheels=False)
    assert (errors, len(shown["missing"])) == ([], 1)
    assert "The digest of vllm/vllm-openai:v0.30.0 is not recorded yet" in shown["missing"][0]


def test_layers_can_be_put_on_a_pulled_image(tmp_path: Path) -> None:
    images = pulled(f"vllm/vllm-openai@{DIGEST}")
    images["more"] = {"from": "vllm-node", "steps": [{"name": "nccl", "requirements": ["x==1"]}]}
    found, errors = plan(tmp_path, images, name="more")
    assert errors == []
    assert "python3 -m pip install" in found["dockerfile"]
    assert "-m venv" not in found["dockerfile"]


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (pulled("x:1", base="y:1"), "has `pull` and one of `base`, `base_archive` and `from`"),
        (pulled("Not A Reference"), "'Not A Reference' is not an image reference"),
        ({"vllm-node": {"vllm_version": "1"}}, "has none of `base`, `pull` and `from`."),
    ],
)
def test_a_reference_that_cannot_be_used_is_named(tmp_path: Path, images: dict[str, Any], sentence: str) -> None:
    _found, errors = plan(tmp_path, images)
    assert sentence in "\n".join(errors)
