# SPDX-License-Identifier: Apache-2.0
"""The image modules on directories of the test's own, with a docker that answers from a dictionary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import certificates, records, registry
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import chain_ids
from ansible_collections.gb10.cluster.plugins.module_utils._image.retention import units_images
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.modules import (
    image_info,
    image_prune,
    image_pull,
    image_room,
)
from tests.unit.helper import NodeModule
from tests.unit.helper import ended as run
from tests.unit.plugins.module_utils.image.conftest import push

TAG = "gb10/probe:0123456789ab"
PULLED = f"192.0.2.1:5080/gb10/probe@sha256:{'b' * 64}"
IMAGE = {"Id": "sha256:1", "Architecture": "arm64", "RootFS": {"Layers": ["sha256:a"]}, "Config": {"Env": ["A=1"]}}


class Module(NodeModule):
    """Stands for AnsibleModule: given parameters, and a docker with images by name."""

    def __init__(self, params: dict[str, Any], images: dict[str, Any] | None = None) -> None:
        super().__init__(params, self.docker)
        self.images = images or {}

    def docker(self, argv: list[str]) -> tuple[int, str, str]:
        if argv[1:3] == ["image", "ls"]:
            return 0, "\n".join(str(image["Id"]) for image in self.images.values()), ""
        if argv[1:3] == ["image", "inspect"]:
            found = [image for name, image in self.images.items() if name in argv or image["Id"] in argv]
            return (0, json.dumps(found), "") if found else (1, "", "No such image")
        if argv[1] == "ps":
            (image,) = (image for image in self.images.values() if f"ancestor={image['Id']}" in argv)
            lines = ["engine "] * bool(image.get("used")) + ["gb10-keep-it true"] * bool(image.get("kept"))
            return 0, "\n".join(lines), ""
        if argv[1] == "tag":
            self.images[argv[3]] = self.images[argv[2]]
        if argv[1] == "rmi":
            self.images.pop(argv[2], None)
        return 0, "", ""


# --- image_pull ----------------------------------------------------------------------------------------------


def pull_params(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "tag": TAG,
        "source": PULLED,
        "layers": [{"digest": "sha256:" + "a" * 64, "file_bytes": 5}],
        "certificates": dict.fromkeys(certificates.CLIENT, "dGV4dA=="),
        "identity": identity(IMAGE),
        "state_dir": str(tmp_path),
        "stall_seconds": 600,
        "program": "/usr/local/lib/gb10/gb10-image-0.pyz",
        "record": {"versions": {"torch": "2.11.0"}},
        "step": "finish",
        "pulled": PULLED,
        **more,
    }


def test_an_image_gets_its_name_after_it_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Module(pull_params(tmp_path), {PULLED: IMAGE})
    assert not run(image_pull, monkeypatch, fake).failed
    assert list(fake.images) == [TAG]
    found = image_info.read_image(fake, TAG, str(tmp_path))
    assert found["verified"] is True
    assert found["record"]["versions"] == {"torch": "2.11.0"}


def test_another_image_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**IMAGE, "RootFS": {"Layers": ["sha256:b"]}}
    fake = Module(pull_params(tmp_path), {PULLED: other})
    ended = run(image_pull, monkeypatch, fake)
    assert ended.failed
    assert "it is not the same image. It was removed" in str(ended)
    assert fake.images == {}
    assert not (tmp_path / "images").exists()


def test_a_pull_starts_with_the_certificates_of_the_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "ENGINE", tmp_path / "certs.d")
    monkeypatch.setattr(image_pull, "PULL_STATUS", str(tmp_path / "status.json"))
    fake = Module(pull_params(tmp_path, step="start"))
    assert run(image_pull, monkeypatch, fake).result["running"] is True
    (call,) = [call for call in fake.calls if call[0] == "systemd-run"]
    assert call[call.index("--source") :][:4] == ["--source", PULLED, "--layers", f"{'a' * 12}:5"]
    assert (tmp_path / "certs.d" / "192.0.2.1:5080" / "client.key").read_text(encoding="utf-8") == "text"
    assert not [word for call in fake.calls for word in call if "text" in word]


def test_an_image_that_is_there_is_recorded_and_not_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Module(pull_params(tmp_path, step="start"), {TAG: IMAGE})
    ended = run(image_pull, monkeypatch, fake)
    assert ended.result["running"] is False
    assert not [call for call in fake.calls if call[0] == "systemd-run"]
    assert image_info.read_image(fake, TAG, str(tmp_path))["verified"] is True


# --- image_info ----------------------------------------------------------------------------------------------


def test_units_of_others_need_no_image(tmp_path: Path) -> None:
    (tmp_path / "vllm-a.service").write_text("# Rendered by gb10.cluster: a\nExecStart=/x gb10/a:1\n", encoding="utf-8")
    (tmp_path / "vllm-b.service").write_text("# by hand\nExecStart=/x gb10/b:1\n", encoding="utf-8")
    (tmp_path / "other.service").write_text("# Rendered by gb10.cluster\nExecStart=/x gb10/c:1\n", encoding="utf-8")
    assert units_images(image_info.unit_texts(tmp_path)) == ["gb10/a:1"]


# --- image_room ----------------------------------------------------------------------------------------------


def test_layers_of_an_interrupted_pull_count_as_held(tmp_path: Path) -> None:
    chains = chain_ids(["sha256:a", "sha256:b", "sha256:c"])
    (tmp_path / "image" / "overlay2" / "layerdb" / "sha256" / chains[1].partition(":")[2]).mkdir(parents=True)
    fake: Any = Module({}, {TAG: IMAGE})
    held = image_room.held_chains(fake, tmp_path, chains)
    assert held == {"sha256:a", chains[1]}


def test_a_directory_that_is_not_there_yet_is_on_its_parents_disk(tmp_path: Path) -> None:
    assert files.existing(tmp_path / "a" / "b") == tmp_path


# --- image_prune ---------------------------------------------------------------------------------------------


def labelled(number: int, *tags: str, used: bool = False, kept: bool = False) -> dict[str, Any]:
    return {
        "Id": f"sha256:{number}",
        "Created": f"2026-11-{number:02}",
        "RepoTags": list(tags),
        "Config": {"Labels": {"gb10.image": "probe"}},
        "used": used,
        "kept": kept,
    }


def prune_params(tmp_path: Path) -> dict[str, Any]:
    return {
        "current": "gb10/probe:3",
        "needed": ["gb10/probe:1"],
        "retain": 0,
        "state_dir": str(tmp_path),
    }


def lay_out_registry(tmp_path: Path) -> None:
    for folder in ("images", "image-store/layers"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "image-store" / "layers" / "of-an-earlier-release").write_bytes(bytes(2**20))
    for number in (2, 3):
        push(tmp_path / "image-registry", f"gb10/probe:{number}", [b"common", bytes([number]) * 2**20], bytes)
        (tmp_path / "images" / f"gb10_probe@{number}.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize("check", [False, True])
def test_exact_names_are_removed_with_what_belongs_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    lay_out_registry(tmp_path)
    images = {f"gb10/probe:{n}": labelled(n, f"gb10/probe:{n}", used=n == 4, kept=n < 4) for n in (1, 2, 3, 4)}
    images |= {"gb10/probe:0123456789ab": labelled(5, "gb10/probe:0123456789ab", used=True)}
    for name in ("0123456789ab", "ba9876543210", "of-somebody"):
        (tmp_path / "cache" / name / "a-model").mkdir(parents=True)
    fake = Module(prune_params(tmp_path), images)
    fake.check_mode = check
    ended = run(image_prune, monkeypatch, fake)
    assert ended.result["removed"] == ["gb10/probe:2"]
    assert (ended.result["changed"], ended.result["freed_mib"]) == (True, 2.0)
    assert set(ended.result["kept"]) == {"gb10/probe:1", "gb10/probe:3", "gb10/probe:4", "gb10/probe:0123456789ab"}
    assert ended.result["removed_caches"] == [str(tmp_path / "cache" / "ba9876543210")]
    caches = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert caches == ["0123456789ab", *(["ba9876543210"] if check else []), "of-somebody"]
    removals = [call for call in fake.calls if call[1] in ("rmi", "rm", "prune")]
    assert removals == ([] if check else [["docker", "rm", "gb10-keep-it"], ["docker", "rmi", "gb10/probe:2"]])
    held = [number for number in (2, 3) if registry.read(tmp_path / "image-registry", f"gb10/probe:{number}")]
    assert held == ([2, 3] if check else [3])
    assert (tmp_path / "image-store").exists() is check
    assert (tmp_path / "images" / "gb10_probe@2.json").exists() is check


def test_an_image_that_docker_does_not_list_is_seen_by_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Docker 26.1 with the containerd image store leaves out of `docker image ls` an image that came back from its
    # archive while another holds the same layers in the form in which they were built.
    images = {f"gb10/probe:{n}": labelled(n, f"gb10/probe:{n}") for n in (1, 2, 3)}
    images["stranger:1"] = {**labelled(4, "stranger:1"), "Config": {"Labels": None}}
    for name in (*images, "gb10/probe:gone"):
        records.write(str(tmp_path), name, {"identity": "x"})
    fake = Module(prune_params(tmp_path), images)
    answer = fake.answer
    fake.answer = lambda argv: (0, "sha256:1\n", "") if argv[1:3] == ["image", "ls"] else answer(argv)
    ended = run(image_prune, monkeypatch, fake)
    assert ended.result["removed"] == ["gb10/probe:2"]
    assert set(ended.result["kept"]) == {"gb10/probe:1", "gb10/probe:3"}
    assert set(fake.images) == {"gb10/probe:1", "gb10/probe:3", "stranger:1"}


def test_a_node_without_images_of_ours_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run(image_prune, monkeypatch, Module(prune_params(tmp_path)))
    assert ended.result["changed"] is False
