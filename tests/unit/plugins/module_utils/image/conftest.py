# SPDX-License-Identifier: Apache-2.0
"""The storage of a registry with an image of two layers, and scripts that stand for docker and zstd."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import layers, registry

TAG = "gb10/probe:0123456789ab"

# Compresses and unpacks like the program of that name, as far as it is asked to.
ZSTD = f"""#!{sys.executable}
import sys, zlib
words = [word for word in sys.argv[1:] if not word.startswith("-")]
data = open(words[0], "rb").read() if words else sys.stdin.buffer.read()
magic = {layers.ZSTD_MAGIC!r}
sys.stdout.buffer.write(zlib.decompress(data[4:]) if "-dcq" in sys.argv else magic + zlib.compress(data))
"""
# `load` keeps what it was given, and fails when it is told to; a lost image is inspected as the test says.
DOCKER = f"""#!{sys.executable}
import os, sys
from pathlib import Path
folder = Path(__file__).parent
if (folder / "fail").exists():
    sys.exit("docker: " + (folder / "fail").read_text())
if sys.argv[1] == "load":
    (folder / "loaded").write_bytes(sys.stdin.buffer.read())
"""


def tar_of(name: str, content: bytes) -> bytes:
    """Return a tar with one file, as a layer is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# Two layers, the second too random to be compressed to nothing.
LAYERS = [
    tar_of("base", b"base" * 1000),
    tar_of("top", b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(40000))),
]
DIFF_IDS = [sha(layer) for layer in LAYERS]
CONFIG = json.dumps({"architecture": "arm64", "rootfs": {"type": "layers", "diff_ids": DIFF_IDS}})


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the two scripts before everything else on the path; return their directory."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("zstd", ZSTD), ("docker", DOCKER)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def put(storage: Path, data: bytes) -> str:
    """Put a blob into the storage of a registry; return its digest."""
    path = registry.blob_path(storage, sha(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return sha(data)


def pack_gzip(data: bytes) -> bytes:
    """Pack without the time of day."""
    return gzip.compress(data, mtime=0)


def push(
    storage: Path, tag: str, tars: list[bytes], pack: Callable[[bytes], bytes] = pack_gzip, index: bool = False
) -> registry.Held:
    """Put an image into the storage of a registry as `docker push` does; return it as it is read."""
    config = json.dumps({"architecture": "arm64", "rootfs": {"type": "layers", "diff_ids": [sha(tar) for tar in tars]}})
    layers = [{"mediaType": "x", "digest": put(storage, pack(tar)), "size": len(pack(tar))} for tar in tars]
    manifest = {"config": {"digest": put(storage, config.encode())}, "layers": layers}
    digest = put(storage, json.dumps(manifest).encode())
    if index:
        entries = [
            {"digest": sha(b"of another machine"), "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": digest, "platform": {"os": "linux", "architecture": "arm64"}},
        ]
        digest = put(storage, json.dumps({"manifests": entries}).encode())
    name, _colon, mark = tag.rpartition(":")
    link = storage / "docker/registry/v2/repositories" / name / "_manifests/tags" / mark / "current/link"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.write_text(digest, encoding="utf-8")
    found = registry.read(storage, tag)
    assert found is not None
    return found


def pack_zstd(data: bytes) -> bytes:
    """Pack as the script that stands for zstd."""
    return bytes(layers.ZSTD_MAGIC) + zlib.compress(data)


def serve(server: ThreadingHTTPServer) -> Iterator[str]:
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def kept(tmp_path: Path, tools: Path) -> Path:
    """Return the storage of a registry with the image of two layers."""
    del tools
    push(tmp_path / "image-registry", TAG, LAYERS)
    return tmp_path / "image-registry"
