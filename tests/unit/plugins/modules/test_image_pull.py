# SPDX-License-Identifier: Apache-2.0
"""How image modules recognise and record a proven image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._image import records
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity
from ansible_collections.gb10.cluster.plugins.modules import image_check, image_info

TAG = "gb10/probe:0123456789ab"
IMAGE = {"Id": "sha256:1", "Architecture": "arm64", "RootFS": {"Layers": ["sha256:a"]}, "Config": {"Env": ["A=1"]}}


class Docker:
    """Stands for the module on a node whose docker holds one image."""

    def __init__(self, image: dict[str, Any] | None) -> None:
        self.image = image
        self.calls: list[list[str]] = []

    def get_bin_path(self, name: str) -> str:
        return name

    def run_command(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        self.calls.append(argv)
        if argv[1:3] == ["image", "inspect"]:
            return (0, json.dumps([self.image]), "") if self.image else (1, "", "No such image")
        return 0, "20.10", ""


def test_a_pulled_image_counts_as_verified_while_it_is_the_same(tmp_path: Path) -> None:
    records.write(str(tmp_path), TAG, {"identity": identity(IMAGE)})
    assert image_info.read_image(Docker(IMAGE), TAG, str(tmp_path))["verified"] is True
    # Another image store gives another id to the same image.
    assert image_info.read_image(Docker({**IMAGE, "Id": "sha256:2"}), TAG, str(tmp_path))["verified"] is True
    other = {**IMAGE, "RootFS": {"Layers": ["sha256:b"]}}
    assert image_info.read_image(Docker(other), TAG, str(tmp_path))["verified"] is False


def test_a_record_without_its_image_vouches_for_nothing(tmp_path: Path) -> None:
    records.write(str(tmp_path), TAG, {"identity": identity(IMAGE)})
    found = image_info.read_image(Docker(None), TAG, str(tmp_path))
    assert (found["present"], found["verified"], found["identity"]) == (False, False, "")


def test_a_broken_record_vouches_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "gb10_probe@0123456789ab.json").write_text("{", encoding="utf-8")
    assert image_info.read_image(Docker(IMAGE), TAG, str(tmp_path))["verified"] is False


def test_a_refused_image_loses_the_name_that_would_start_it() -> None:
    docker = Docker(IMAGE)
    assert image_check.refuse(docker, TAG) == "gb10/probe:refused-0123456789ab"
    assert docker.calls == [
        ["docker", "tag", TAG, "gb10/probe:refused-0123456789ab"],
        ["docker", "rmi", TAG],
    ]
