# SPDX-License-Identifier: Apache-2.0
"""An image from Docker into a store: names, digests, layers from Docker's files and from `docker save`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import (
    command,
    export,
    layers,
    layout,
    ranges,
    registry,
    store,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._program import build
from tests.unit.plugins.module_utils.image.conftest import (
    CONFIG,
    DIFF_IDS,
    LAYERS,
    PACKED,
    TAG,
    manifest_of,
    overlay2,
    saved,
    sha,
)


def test_a_manifest_survives_its_text(kept: Path) -> None:
    manifest = manifest_of(kept)
    assert layout.manifest_from_json(manifest.to_json()) == manifest
    assert [layer.diff_id for layer in manifest.layers] == DIFF_IDS
    assert [layer.bytes for layer in manifest.layers] == [len(layer) for layer in LAYERS]


def test_a_text_that_is_no_manifest_is_named() -> None:
    with pytest.raises(layout.ImageError, match="manifest cannot be read"):
        layout.manifest_from_json('{"tag": "x"}')


def test_a_manifest_with_other_layers_than_its_configuration_is_refused(kept: Path) -> None:
    manifest = manifest_of(kept)
    text = layout.Manifest(TAG, manifest.config, manifest.layers[::-1]).to_json()
    with pytest.raises(layout.ImageError, match="names other layers than its configuration"):
        layout.manifest_from_json(text)


def test_the_registry_describes_layers_by_their_diff_ids(kept: Path) -> None:
    described = json.loads(registry.registry_manifest(manifest_of(kept)))
    assert [layer["digest"] for layer in described["layers"]] == DIFF_IDS
    assert described["config"] == {
        "mediaType": registry.CONFIG_TYPE,
        "size": len(CONFIG),
        "digest": sha(CONFIG.encode()),
    }


def test_chain_ids_are_dockers() -> None:
    first, second = layout.chain_ids(["sha256:a", "sha256:b"])
    assert first == "sha256:a"
    assert second == sha(b"sha256:a sha256:b")
    assert layout.chain_ids([]) == []


@pytest.mark.parametrize(
    ("header", "start"),
    [(None, 0), ("", 0), ("bytes=5-", 5), ("bytes=5-9", 5), ("bytes=10-", None), ("bytes=99-", None), ("items=1-", 0)],
)
def test_ranges(header: str | None, start: int | None) -> None:
    assert ranges.range_start(header, 10) == start


def test_a_layer_is_read_from_dockers_own_files(tmp_path: Path, tools: Path) -> None:
    del tools
    content = b"base" * 1000
    overlay2(tmp_path / "docker", LAYERS[0], DIFF_IDS[0], "base", content)
    assert b"".join(layers.overlay2_layer(tmp_path / "docker", DIFF_IDS[0])) == LAYERS[0]
    export.export_overlay2(tmp_path / "docker", [DIFF_IDS[0]], [DIFF_IDS[0]], tmp_path / "layers", 1)
    found = store.known_layer(tmp_path / "layers", DIFF_IDS[0])
    assert found is not None
    assert found.bytes == len(LAYERS[0])


def test_files_that_were_changed_under_docker_are_found(tmp_path: Path, tools: Path) -> None:
    del tools
    overlay2(tmp_path / "docker", LAYERS[0], DIFF_IDS[0], "base", b"base" * 1000)
    (tmp_path / "docker" / "overlay2" / "cache" / "diff" / "base").write_bytes(b"BASE" * 1000)
    with pytest.raises(layout.ImageError, match="Docker's files were changed"):
        export.export_overlay2(tmp_path / "docker", [DIFF_IDS[0]], [DIFF_IDS[0]], tmp_path / "layers", 1)
    assert list((tmp_path / "layers").iterdir()) == []


@pytest.mark.parametrize("way", PACKED)
def test_layers_come_out_of_docker_save(tmp_path: Path, tools: Path, way: str) -> None:
    del tools
    stream = io.BytesIO(saved(LAYERS, way))
    assert export.export_archive(stream, DIFF_IDS[1:], tmp_path, 1) == CONFIG
    found = store.known_layer(tmp_path, DIFF_IDS[1])
    assert found is not None
    assert found.bytes == len(LAYERS[1])
    assert store.known_layer(tmp_path, DIFF_IDS[0]) is None  # it was not asked for
    assert not list(tmp_path.glob("*.writing"))


def test_docker_save_without_a_layer_is_named(tmp_path: Path, tools: Path) -> None:
    del tools
    with pytest.raises(layout.ImageError, match="has no " + DIFF_IDS[1]):
        export.export_archive(io.BytesIO(saved(LAYERS[:1], "layer.tar files")), DIFF_IDS, tmp_path, 1)


def test_a_damaged_blob_of_docker_save_is_named(tools: Path) -> None:
    del tools
    packed = PACKED["zstd blobs"](LAYERS[1])
    with pytest.raises(layout.ImageError, match="cannot be decompressed: zstd exit code 1"):
        list(layers.tar_chunks(packed[:100], io.BytesIO(packed[100 : len(packed) // 2])))


def test_export_through_docker_save(tmp_path: Path, tools: Path) -> None:
    (tools / "saved").write_bytes(saved(LAYERS, "layer.tar files"))
    (tools / "inspected").write_text(json.dumps([{"Id": "sha256:1", "RootFS": {"Layers": DIFF_IDS}}]))
    manifest = export.export(TAG, tmp_path / "store", 1, "auto")
    assert [layer.diff_id for layer in manifest.layers] == DIFF_IDS
    # What the store holds is not made again: docker save would give nothing now.
    (tools / "saved").write_bytes(b"")
    assert export.export(TAG, tmp_path / "store", 1, "auto") == manifest
    # A damaged layer is.
    (tools / "saved").write_bytes(saved(LAYERS, "layer.tar files"))
    file = tmp_path / "store" / "layers" / manifest.layers[0].file
    file.write_bytes(bytes(file.stat().st_size))
    assert export.export(TAG, tmp_path / "store", 1, "auto") == manifest
    assert store.intact(tmp_path / "store" / "layers", manifest.layers[0])


def test_a_store_offers_what_docker_has_lost(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["export", "--image", TAG, "--store", str(kept)]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == CONFIG
    (kept / "layers" / manifest_of(kept).layers[1].file).unlink()
    assert command.main(["export", "--image", TAG, "--store", str(kept)]) == 1
    assert f"without {DIFF_IDS[1][:19]}: restore it from its backup" in capsys.readouterr().err


def test_an_image_that_is_nowhere_is_named(tmp_path: Path, tools: Path) -> None:
    del tools
    with pytest.raises(layout.ImageError, match="is neither in Docker nor in"):
        export.export(TAG, tmp_path, 1, "auto")


def test_the_program_of_a_node_exports(kept: Path, tmp_path: Path) -> None:
    """The archive that nodes run has all that its verb imports, without this collection and outside packages."""
    archive = build("image")
    (tmp_path / archive.name).write_bytes(archive.data)
    words = [sys.executable, "-I", "-S", str(tmp_path / archive.name), "image"]
    done = subprocess.run(
        [*words, "export", "--image", TAG, "--store", str(kept)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert layout.manifest_from_json(done.stdout) == manifest_of(kept)
    done = subprocess.run([*words, "pull", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, "--spool" in done.stdout) == (0, True)
