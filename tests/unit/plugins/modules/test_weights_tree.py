# SPDX-License-Identifier: Apache-2.0
"""What gb10.cluster.weights_tree takes for whole, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils import weights
from ansible_collections.gb10.cluster.plugins.modules import weights_tree

CONTENT = {"config.json": b"{}", "model.safetensors": b"0123456789" * 100}


def manifest() -> dict[str, Any]:
    files = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in CONTENT.items()
    ]
    return weights.make_manifest("org/model", "main", files)


def put(folder: Path, **changed: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**CONTENT, **changed}.items():
        (folder / name).write_bytes(data)


def test_the_last_transfer_takes_the_incoming_directory_with_it(tmp_path: Path) -> None:
    incoming = tmp_path / ".incoming" / "org" / "model"
    put(incoming)
    weights_tree.install(tmp_path, manifest(), list(CONTENT), incoming)
    assert not (tmp_path / ".incoming").exists()
    assert json.loads((tmp_path / "org/model" / weights.STAMP).read_text(encoding="utf-8")) == manifest()
    assert (tmp_path / "org/model/model.safetensors").read_bytes() == CONTENT["model.safetensors"]


def test_another_models_transfer_stays(tmp_path: Path) -> None:
    incoming = tmp_path / ".incoming" / "org" / "model"
    put(incoming)
    put(tmp_path / ".incoming" / "org" / "other")
    weights_tree.install(tmp_path, manifest(), list(CONTENT), incoming)
    assert not incoming.exists()
    assert (tmp_path / ".incoming/org/other/config.json").is_file()


def test_without_a_stamp_only_what_has_the_wrong_hash_is_lacking(tmp_path: Path) -> None:
    put(tmp_path / "org/model", **{"model.safetensors": b"x" * 1000})
    complete, lacking, size, _free = weights_tree.look(tmp_path, manifest())
    assert (complete, lacking, size) == (False, ["model.safetensors"], 1000)


def test_a_flipped_byte_in_what_was_sent_is_refused(tmp_path: Path) -> None:
    file = next(file for file in manifest()["files"] if file["path"] == "model.safetensors")
    put(tmp_path, **{"model.safetensors": b"x" + CONTENT["model.safetensors"][1:]})
    with pytest.raises(ValueError, match=r"model\.safetensors did not arrive whole"):
        weights_tree.bring(file, "", tmp_path)
