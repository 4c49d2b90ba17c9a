# SPDX-License-Identifier: Apache-2.0
"""What moving an image needs, what may be removed, and the words for both."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import layout, progress, retention, room

LAYERS: list[dict[str, Any]] = [
    {"diff_id": "sha256:a", "bytes": 100, "file_bytes": 40},
    {"diff_id": "sha256:b", "bytes": 200, "file_bytes": 80},
    {"diff_id": "sha256:c", "bytes": 400, "file_bytes": 160},
]


def test_names_of_files() -> None:
    assert layout.tag_file("gb10/vllm-node:0123") == "gb10_vllm-node@0123.json"


def test_a_layer_is_held_only_upon_the_same_layers() -> None:
    chains = layout.chain_ids(layer["diff_id"] for layer in LAYERS)
    assert chains[1] == "sha256:" + hashlib.sha256(b"sha256:a sha256:b").hexdigest()
    assert room.missing_layers(LAYERS, set()) == LAYERS
    assert room.missing_layers(LAYERS, set(chains[:2])) == LAYERS[2:]
    # The same diff id at the bottom of another image is another chain.
    assert room.missing_layers(LAYERS, {"sha256:b"}) == LAYERS


def test_room() -> None:
    assert room.room_needed(LAYERS[1:]) == 840


def test_a_disk_that_is_too_small_is_named_with_its_shortfall() -> None:
    gib = layout.GIB
    disks = [("/var/lib/docker", 44 * gib, 30 * gib), ("/data", 4 * gib, 500 * gib)]
    (sentence,) = room.no_room("gx10-3", "gb10/x:1", disks, 5 * gib)
    assert sentence.startswith("gx10-3: gb10/x:1 needs 44.0 GiB below /var/lib/docker")
    assert "30.0 GiB are free: 19.0 GiB too few. No byte was sent to any node." in sentence


def test_a_disk_that_is_full_does_not_matter_where_nothing_is_needed() -> None:
    assert room.no_room("n", "t", [("/", 0, 0)], 10) == []


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({}, "n: 0 MiB received, 1 MiB/s"),
        (
            {"received": 10 * 2**20, "total": 40 * 2**20, "unpacked": 2**20, "unpack_total": 90 * 2**20},
            "n: 10 of 40 MiB received, 1 MiB/s; 1 of 90 MiB unpacked",
        ),
    ],
)
def test_progress(status: dict[str, Any], line: str) -> None:
    assert progress.progress_line("n", status, 2**20) == line


def image(tag: str, created: int, containers: int = 0, name: str = "x") -> dict[str, Any]:
    return {"tag": tag, "name": name, "created": f"2026-11-{created:02}T00:00:00Z", "containers": containers}


def test_what_is_needed_stays_and_the_rest_goes() -> None:
    images = [
        image("gb10/x:current", 9),
        image("gb10/x:spare", 8),
        image("gb10/x:old", 7),
        image("gb10/x:of-a-stopped-model", 2),
        image("gb10/x:of-a-stopped-container", 1, containers=1),
        image("gb10/x:refused-1", 10),
        image("gb10/x:refused-2", 10, containers=1),
        image("gb10/y:spare", 3, name="y"),
        image("192.0.2.1:5080/gb10/x@sha256:0", 7),
        image("192.0.2.1:5080/mine:1", 7),
        image("mine:1", 1),
    ]
    remove, stay = retention.to_remove(images, "gb10/x:current", {"gb10/x:of-a-stopped-model"}, 1)
    assert sorted(remove) == ["192.0.2.1:5080/gb10/x@sha256:0", "gb10/x:old", "gb10/x:refused-1"]
    assert stay["gb10/x:of-a-stopped-model"] == "a unit names it"
    assert stay["gb10/x:refused-2"] == "a container was made from it"
    assert stay["mine:1"] == "somebody else gave it this name"
    assert stay["gb10/x:current"] == "it is the current one"
    assert set(stay) | set(remove) == {each["tag"] for each in images}


def test_nothing_is_spare_when_nothing_is_retained() -> None:
    assert retention.to_remove([image("gb10/x:old", 1)], "gb10/x:new", set(), 0) == (["gb10/x:old"], {})


def test_images_that_units_name() -> None:
    unit = "ExecStart=/usr/bin/docker run --name vllm-x --entrypoint /opt/python gb10/vllm-node:0123456789ab /x\n"
    assert retention.units_images([unit, "ExecStart=/x gb10/y:1\n", "/var/lib/gb10/x:y /x/gb10/no:1"]) == [
        "gb10/vllm-node:0123456789ab",
        "gb10/y:1",
    ]


@pytest.mark.parametrize(
    ("info", "config", "root"),
    [
        # Captured: Docker 20.10 with overlay2, Docker 26.1 with the containerd image store, containerd 1.6.
        ('/var/lib/docker\n[["Backing Filesystem","extfs"],["Supports d_type","true"]]\n', "", "/var/lib/docker"),
        ('/var/lib/docker\n[["driver-type","io.containerd.snapshotter.v1"]]\n', "", "/var/lib/containerd"),
        (
            '/var/lib/docker\n[["driver-type","io.containerd.snapshotter.v1"]]\n',
            'oom_score = 0\nroot = "/data/containerd"\nstate = "/run/containerd"\n',
            "/data/containerd",
        ),
        ("/var/lib/docker\nnull\n", "", "/var/lib/docker"),
    ],
)
def test_images_are_where_their_store_is(info: str, config: str, root: str) -> None:
    assert room.images_root(info, config) == root
