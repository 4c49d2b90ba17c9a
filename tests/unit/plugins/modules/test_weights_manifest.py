# SPDX-License-Identifier: Apache-2.0
"""What gb10.cluster.weights_manifest finds at a source."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.modules import weights_manifest


def test_a_dangling_link_is_named_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").symlink_to("../blobs/gone")
    files, errors = weights_manifest.walk(tmp_path)
    assert list(files) == ["config.json"]
    assert errors == ["model.safetensors is a link to ../blobs/gone, which is not there."]


def test_a_link_into_a_cache_is_followed(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"abc")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").symlink_to(blob)
    files, errors = weights_manifest.walk(model)
    assert errors == []
    assert weights_manifest.hashed(files, "") == [
        {"path": "config.json", "size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    ]


def test_a_file_that_changed_is_hashed_again(tmp_path: Path) -> None:
    file, cache = tmp_path / "config.json", str(tmp_path / "cache" / "hashes.json")
    file.write_bytes(b"one")
    before = weights_manifest.hashed({"config.json": file}, cache)
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    after = weights_manifest.hashed({"config.json": file}, cache)
    assert after[0]["sha256"] == hashlib.sha256(b"two").hexdigest() != before[0]["sha256"]


def test_a_header_longer_than_the_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((50).to_bytes(8, "little") + b"{}")
    assert weights_manifest.header(file) == file.read_bytes()
