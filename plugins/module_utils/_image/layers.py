# SPDX-License-Identifier: Apache-2.0
"""Read the tar of an image's layers: from Docker's own files (overlay2), or from the stream of `docker save`."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import CHUNK, ImageError, chain_ids

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def layer_folder(root: Path, chain: str) -> Path:
    """Return the directory in which overlay2 describes a layer.

    :param root: ``DockerRootDir`` of ``docker info``.
    :param chain: the layer's chain id.
    """
    return root / "image" / "overlay2" / "layerdb" / "sha256" / chain.partition(":")[2]


def _file_chunks(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as handle:
        while size > 0:
            chunk = handle.read(min(CHUNK, size))
            if not chunk:
                return  # the digest shows what is missing
            size -= len(chunk)
            yield chunk


def overlay2_layer(root: Path, chain: str) -> Iterator[bytes]:
    """Yield a layer's tar, byte for byte as it was, from Docker's own files.

    Docker keeps of every layer the unpacked files and, in tar-split.json.gz, everything between them in the tar: an
    entry of type 2 is such a piece, one of type 1 stands for the content of a file.
    """
    folder = layer_folder(root, chain)
    diff = root / "overlay2" / (folder / "cache-id").read_text(encoding="utf-8").strip() / "diff"
    with gzip.open(folder / "tar-split.json.gz", "rt", encoding="utf-8") as entries:
        for line in entries:
            entry = json.loads(line)
            if entry["type"] == 2:
                yield base64.b64decode(entry["payload"])
            elif entry.get("size"):
                raw = entry.get("name_raw")
                name = os.fsdecode(base64.b64decode(raw)) if raw else entry["name"]
                yield from _file_chunks(diff / name.lstrip("/"), entry["size"])


def held_layers(root: Path, diff_ids: Iterable[str]) -> dict[str, str]:
    """Return diff id → chain id of the layers of an image that this node's Docker Engine has in the same position.

    An engine knows the digest of a layer only when it came from a registry: it requests one that was built or loaded
    here again.
    """
    wanted = list(diff_ids)
    chains = zip(wanted, chain_ids(wanted), strict=True)
    return {diff_id: chain for diff_id, chain in chains if layer_folder(root, chain).is_dir()}


def archive_members(stream: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    """Yield name and content of each regular file of a tar that arrives as a stream."""
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content  # type: ignore[misc]


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self.head = head
        self.rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.head[: len(buffer)] or self.rest.read(len(buffer))
        self.head = self.head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def tar_chunks(head: bytes, rest: BinaryIO) -> Iterator[bytes]:
    """Yield a layer's tar from a member of `docker save`; the containerd image store keeps it as it was pulled.

    :param head: the first bytes of the member, which tell how it is compressed.
    :raises ImageError: the member is damaged.
    """
    source: Any = io.BufferedReader(_Rejoined(head, rest), CHUNK)
    if head.startswith(ZSTD_MAGIC):
        yield from zstd_chunks(source)
        return
    if head.startswith(GZIP_MAGIC):
        source = gzip.GzipFile(fileobj=source)
    while chunk := source.read(CHUNK):
        yield chunk


def zstd_chunks(source: BinaryIO) -> Iterator[bytes]:
    """Yield the decompressed content of a zstd stream.

    :raises ImageError: the stream is damaged.
    """
    with subprocess.Popen(["zstd", "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zstd:
        assert zstd.stdin is not None
        assert zstd.stdout is not None
        into = zstd.stdin

        def feed() -> None:
            with suppress(OSError), into:  # a zstd that failed says so by its exit code
                while chunk := source.read(CHUNK):
                    into.write(chunk)

        feeder = threading.Thread(target=feed)
        feeder.start()
        while chunk := zstd.stdout.read(CHUNK):
            yield chunk
        feeder.join()
    if zstd.returncode != 0:
        raise ImageError(f"A layer of `docker save` cannot be decompressed: zstd exit code {zstd.returncode}.")
