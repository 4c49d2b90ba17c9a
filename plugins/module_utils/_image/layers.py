# SPDX-License-Identifier: Apache-2.0
"""Read layers as streams: members of a tar, and a layer's tar whichever way it is compressed."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import CHUNK, ImageError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


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
    """Yield a layer's tar from a layer as a registry or an archive has it.

    :param head: the first bytes of the layer, which tell how it is compressed.
    :raises ImageError: the layer is damaged.
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
        raise ImageError(f"A layer cannot be decompressed: zstd exit code {zstd.returncode}.")
