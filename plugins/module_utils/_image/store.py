# SPDX-License-Identifier: Apache-2.0
"""Read and write the layers of a store; standard library and zstd only."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import (
    CHUNK,
    ImageError,
    Layer,
    Manifest,
    tag_file,
)
from ansible_collections.gb10.cluster.plugins.module_utils._node import files


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def intact(folder: Path, layer: Layer) -> bool:
    """Return whether a layer's file exists with the size and the digest of its description."""
    path = folder / layer.file
    try:
        return path.stat().st_size == layer.file_bytes and file_sha256(path) == layer.sha256
    except OSError:
        return False


def damaged(folder: Path, layers: Iterable[Layer]) -> list[Layer]:
    """Return the layers that are missing in a folder or not intact, read side by side."""
    wanted = list(layers)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = list(pool.map(lambda layer: intact(folder, layer), wanted))
    return [layer for layer, good in zip(wanted, found, strict=True) if not good]


def known_layer(folder: Path, diff_id: str) -> Layer | None:
    """Return a layer that the store holds intact; a damaged file is removed and reported."""
    try:
        text = (folder / f"{diff_id.partition(':')[2]}.json").read_text(encoding="utf-8")
        layer = Layer(**json.loads(text))
    except (OSError, ValueError, TypeError, ImageError):
        return None
    if layer.diff_id != diff_id:
        return None
    if intact(folder, layer):
        return layer
    if files.remove(folder / layer.file):
        print(f"{folder / layer.file} was damaged; it is exported again", flush=True)
    return None


def describe_layer(folder: Path, layer: Layer) -> None:
    """Write the description of a layer's file."""
    files.write_json(folder / f"{layer.hex}.json", asdict(layer))


def keep_layer(folder: Path, layer: Layer, temporary: Path) -> None:
    """Give a compressed layer its name, its description last."""
    temporary.replace(folder / layer.file)
    describe_layer(folder, layer)


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Write an image's manifest; its layers have to be there."""
    folder = store / "images"
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / tag_file(manifest.tag), manifest.to_json())


def store_layer(chunks: Iterable[bytes], folder: Path, level: int, stem: str) -> tuple[Layer, Path]:
    """Compress a layer's tar into a temporary file.

    :param level: compression level of zstd.
    :param stem: name of the temporary file, unique among layers that are written at the same time.
    :returns: (the layer, the temporary file, synchronised to disk); the caller names it with `keep_layer`.
    :raises ImageError: zstd failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{stem}.writing"
    raw, packed = hashlib.sha256(), hashlib.sha256()
    raw_bytes = packed_bytes = 0
    argv = ["zstd", f"-{level}", "-T0", "--quiet", "--stdout"]
    with (
        temporary.open("wb") as out,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=CHUNK) as zstd,
    ):
        assert zstd.stdin is not None
        assert zstd.stdout is not None
        packed_stream: BinaryIO = zstd.stdout  # type: ignore[assignment]

        def drain() -> None:
            nonlocal packed_bytes
            while chunk := packed_stream.read(CHUNK):
                packed.update(chunk)
                out.write(chunk)
                packed_bytes += len(chunk)

        drainer = threading.Thread(target=drain)
        drainer.start()
        try:
            for chunk in chunks:
                raw.update(chunk)
                raw_bytes += len(chunk)
                zstd.stdin.write(chunk)
        finally:
            zstd.stdin.close()
            drainer.join()
        out.flush()
        os.fsync(out.fileno())
    if zstd.returncode != 0:
        raise ImageError(f"zstd failed with exit code {zstd.returncode} while writing {temporary}. Is the disk full?")
    return Layer(f"sha256:{raw.hexdigest()}", raw_bytes, packed_bytes, packed.hexdigest()), temporary
