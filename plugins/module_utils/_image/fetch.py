# SPDX-License-Identifier: Apache-2.0
"""Fetch from an offer: the manifest of an image, its layers (resumed, verified), or all of it as a tarball."""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import (
    CHUNK,
    ImageError,
    Layer,
    Manifest,
    manifest_from_json,
    tag_file,
)
from ansible_collections.gb10.cluster.plugins.module_utils._image.progress import Progress
from ansible_collections.gb10.cluster.plugins.module_utils._image.store import file_sha256

SOCKET_TIMEOUT_SECONDS = 60
#: A fetch is given up after so many attempts in a row that brought no byte.
IDLE_ATTEMPTS = 5


@contextmanager
def _answer(source: str, path: str, what: str, patient: bool = False) -> Iterator[http.client.HTTPResponse]:
    """Ask an offer for something; raise ImageError when it does not have it or cannot be reached."""
    where = urlsplit(source)
    timeout = None if patient else SOCKET_TIMEOUT_SECONDS
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=SOCKET_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        reply = connection.getresponse()
        if reply.status != 200:
            raise ImageError(f"{where.netloc} does not offer {what} (status {reply.status}).")
        yield reply
    except OSError as problem:
        raise ImageError(f"{where.netloc} does not answer: {problem}. Is the fabric up?") from problem
    finally:
        connection.close()


def get_manifest(source: str, tag: str) -> Manifest:
    """Fetch an image's manifest from an offer.

    :raises ImageError: the offer has no such image, or does not answer.
    """
    with _answer(source, f"/images/{tag_file(tag)}", tag) as reply:
        return manifest_from_json(reply.read().decode())


class Fetcher:
    """Brings layers of one manifest into a spool directory: resumed, verified, each one once."""

    def __init__(self, manifest: Manifest, source: str, spool: Path, progress: Progress) -> None:
        """Remove what belongs to other images from the spool directory and count what is there already."""
        self.layers = {layer.diff_id: layer for layer in manifest.layers}
        self.source = urlsplit(source)
        self.spool = spool
        self.progress = progress
        self.locks = {diff_id: threading.Lock() for diff_id in self.layers}
        self.count = threading.Lock()
        spool.mkdir(parents=True, exist_ok=True)
        wanted = {name for layer in self.layers.values() for name in (layer.file, f"{layer.file}.partial")}
        for path in spool.iterdir():
            if path.name not in wanted:
                path.unlink()
        self.progress.kept = sum(path.stat().st_size for path in spool.iterdir())

    def get(self, diff_id: str) -> Path:
        """Return the verified file of a layer, after fetching what is missing of it.

        :raises ImageError: it arrived damaged three times, or the offer sends nothing any more.
        """
        layer = self.layers[diff_id]
        final = self.spool / layer.file
        with self.locks[diff_id]:
            if final.is_file():
                if file_sha256(final) == layer.sha256:
                    return final
                self._discard(final, layer)
            partial = self.spool / f"{layer.file}.partial"
            for _attempt in range(3):
                if self._fetch(layer, partial) == layer.sha256:
                    partial.replace(final)
                    return final
                self._discard(partial, layer)
            raise ImageError(
                f"Layer {diff_id[:19]} arrived damaged three times from {self.source.netloc}: its copy there does not "
                "match its manifest. Run playbooks/image.yml again, which verifies the copy and exports it again."
            )

    def forget(self, short_id: str) -> None:
        """Remove the file of a layer that the Docker Engine has unpacked."""
        for layer in self.layers.values():
            if layer.hex.startswith(short_id):
                (self.spool / layer.file).unlink(missing_ok=True)

    def _discard(self, path: Path, layer: Layer) -> None:
        path.unlink()
        self.progress.refetched.append(layer.diff_id)
        print(f"layer {layer.diff_id[:19]} was damaged and is fetched again", flush=True)

    def _fetch(self, layer: Layer, partial: Path) -> str:
        """Append to a partial file until it has its length; return its sha256."""
        digest = hashlib.sha256()
        with partial.open("ab+") as out:
            out.seek(0)
            while chunk := out.read(CHUNK):
                digest.update(chunk)
            have, idle, problem = out.tell(), 0, ""
            while have < layer.file_bytes:
                before = have
                try:
                    for chunk in self._stream(f"/layers/{layer.file}", have):
                        out.write(chunk)
                        digest.update(chunk)
                        have += len(chunk)
                        with self.count:
                            self.progress.received += len(chunk)
                except (OSError, http.client.HTTPException) as error:
                    problem = f"{type(error).__name__}: {error}"
                idle = 0 if have > before else idle + 1
                if idle >= IDLE_ATTEMPTS:
                    raise ImageError(
                        f"Layer {layer.diff_id[:19]} is stuck at {have} of {layer.file_bytes} bytes: "
                        f"{self.source.netloc} sends no more ({problem or 'the connection ended early'}). "
                        "What arrived is kept."
                    )
                if have < layer.file_bytes and idle:
                    time.sleep(2)
            out.flush()
            os.fsync(out.fileno())
        return digest.hexdigest() if have == layer.file_bytes else ""

    def _stream(self, path: str, start: int) -> Iterator[bytes]:
        connection = http.client.HTTPConnection(
            self.source.hostname or "", self.source.port, timeout=SOCKET_TIMEOUT_SECONDS
        )  # fmt: skip
        try:
            connection.request("GET", path, headers={"Range": f"bytes={start}-"} if start else {})
            reply = connection.getresponse()
            if reply.status != (206 if start else 200):
                raise http.client.HTTPException(f"status {reply.status}")
            while chunk := reply.read(CHUNK):
                yield chunk
        finally:
            connection.close()


def pull_tarball(tag: str, source: str, progress: Progress) -> str:
    """Load a complete image as it arrives; return the name under which the engine holds it now.

    :raises ImageError: the stream broke off, or the Docker Engine did not load it.
    """
    progress.phase = "tarball"
    netloc = urlsplit(source).netloc
    # `docker save` collects the complete image before its first byte.
    with _answer(source, f"/tarball/{tag}", tag, patient=True) as reply:
        with (
            subprocess.Popen(["zstd", "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zstd,
            subprocess.Popen(
                ["docker", "load", "--quiet"], stdin=zstd.stdout, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            ) as load,
        ):
            assert zstd.stdin is not None
            assert zstd.stdout is not None
            assert load.stderr is not None
            zstd.stdout.close()
            broken = ""
            try:
                while chunk := reply.read(CHUNK):
                    zstd.stdin.write(chunk)
                    progress.received += len(chunk)
            except (OSError, http.client.HTTPException) as problem:
                broken = f"{type(problem).__name__} after {progress.received} bytes"
                load.terminate()
            try:
                zstd.stdin.close()
            except OSError:
                broken = broken or "docker load stopped reading"
            output = load.stderr.read().decode(errors="replace").strip()
        if broken or zstd.returncode or load.returncode:
            raise ImageError(f"`docker load` of {tag} from {netloc} failed: {' '.join(filter(None, [broken, output]))}")
    return tag
