# SPDX-License-Identifier: Apache-2.0
"""Bring an image from the Docker Engine into a store, without the layers that the store holds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from ansible_collections.gb10.cluster.plugins.module_utils._image import layers, store
from ansible_collections.gb10.cluster.plugins.module_utils._image.engine import docker
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import (
    CHUNK,
    ImageError,
    Layer,
    Manifest,
    chain_ids,
    manifest_from_json,
    tag_file,
)


def export_overlay2(root: Path, diff_ids: list[str], missing: list[str], folder: Path, level: int) -> None:
    """Bring the missing layers of an image into the store from Docker's own files, up to four at a time.

    :raises ImageError: Docker's files give another layer than their description says.
    """
    chains = dict(zip(diff_ids, chain_ids(diff_ids), strict=True))

    def one(diff_id: str) -> None:
        chunks = layers.overlay2_layer(root, chains[diff_id])
        layer, temporary = store.store_layer(chunks, folder, level, chains[diff_id][7:])
        if layer.diff_id != diff_id:
            temporary.unlink()
            raise ImageError(
                f"Layer {diff_id[:19]} reads as {layer.diff_id[:19]} from {root}: Docker's files were changed. "
                "Remove the image and build or restore it."
            )
        store.keep_layer(folder, layer, temporary)

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(one, missing))


def export_archive(stream: BinaryIO, missing: Iterable[str], folder: Path, level: int) -> str:
    """Bring the missing layers into the store from `docker save`; return the image's configuration.

    :raises ImageError: the stream ends without one of them.
    """
    wanted = set(missing)
    small: dict[str, bytes] = {}
    for number, (name, content) in enumerate(layers.archive_members(stream)):
        if name.endswith(".json") or name in ("oci-layout", "repositories"):
            small[name] = content.read()
            continue
        if not (name.endswith("/layer.tar") or name.startswith("blobs/sha256/")):
            continue
        start = content.read(CHUNK)
        if start[:1] == b"{":
            small[name] = start + content.read()
            continue
        layer, temporary = store.store_layer(layers.tar_chunks(start, content), folder, level, f"saved-{number}")
        if layer.diff_id in wanted:
            store.keep_layer(folder, layer, temporary)
            wanted.remove(layer.diff_id)
        else:
            temporary.unlink()
    if wanted or "manifest.json" not in small:
        raise ImageError(f"The output of `docker save` has no {', '.join(sorted(wanted)) or 'manifest.json'}.")
    return small[json.loads(small["manifest.json"])[0]["Config"]].decode()


def export(tag: str, folder: Path, level: int, read: str) -> Manifest:
    """Bring an image into the store, or verify that the store holds it.

    :param folder: the store.
    :param level: compression level of zstd.
    :param read: ``overlay2``, ``save``, or ``auto``: overlay2 where Docker uses it, else save.
    :raises ImageError: neither Docker nor the store has the image complete.
    """
    seen = subprocess.run(["docker", "image", "inspect", tag], capture_output=True, text=True, check=False)
    if seen.returncode != 0:
        return _verify(tag, folder)
    return _bring(tag, json.loads(seen.stdout)[0], folder, level, read)


def _verify(tag: str, folder: Path) -> Manifest:
    path = folder / "images" / tag_file(tag)
    if not path.is_file():
        raise ImageError(f"{tag} is neither in Docker nor in {folder}: build it, or restore it from its backup.")
    manifest = manifest_from_json(path.read_text(encoding="utf-8"))
    lost = store.damaged(folder / "layers", manifest.distinct)
    if lost:
        names = ", ".join(layer.diff_id[:19] for layer in lost)
        raise ImageError(f"{folder} holds {tag} without {names}: restore it from its backup.")
    for layer in manifest.distinct:
        store.describe_layer(folder / "layers", layer)
    return manifest


def _bring(tag: str, inspected: dict[str, Any], folder: Path, level: int, read: str) -> Manifest:
    path = folder / "images" / tag_file(tag)
    diff_ids: list[str] = inspected["RootFS"]["Layers"]
    distinct = list(dict.fromkeys(diff_ids))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = list(pool.map(lambda diff_id: store.known_layer(folder / "layers", diff_id), distinct))
    missing = [diff_id for diff_id, layer in zip(distinct, found, strict=True) if layer is None]
    driver, root = docker("info", "--format", "{{.Driver}}\n{{.DockerRootDir}}").split()
    config_file = Path(root) / "image" / "overlay2" / "imagedb" / "content" / "sha256" / inspected["Id"][7:]
    if read == "auto":
        read = "overlay2" if driver == "overlay2" and config_file.is_file() else "save"
    if read == "overlay2":
        export_overlay2(Path(root), diff_ids, missing, folder / "layers", level)
        config = config_file.read_text(encoding="utf-8")
    elif not missing and (known := _known_manifest(path, diff_ids)) is not None:
        return known
    else:
        with subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE) as save:
            assert save.stdout is not None
            config = export_archive(save.stdout, missing, folder / "layers", level)  # type: ignore[arg-type]
    described = {
        diff_id: Layer(**json.loads((folder / "layers" / f"{diff_id[7:]}.json").read_text(encoding="utf-8")))
        for diff_id in distinct
    }
    manifest = Manifest(tag, config, [described[diff_id] for diff_id in diff_ids])
    store.write_manifest(folder, manifest)
    return manifest


def _known_manifest(path: Path, diff_ids: list[str]) -> Manifest | None:
    """Return the manifest in the store when it describes these layers."""
    try:
        manifest = manifest_from_json(path.read_text(encoding="utf-8"))
    except (OSError, ImageError):
        return None
    return manifest if [layer.diff_id for layer in manifest.layers] == diff_ids else None
