# SPDX-License-Identifier: Apache-2.0
"""A store with an image of two layers, an offer of it, and scripts that stand for docker and zstd."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
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
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import (
    layers,
    layout,
    offer,
    store,
)

TAG = "gb10/probe:0123456789ab"

# Compresses and unpacks like the program of that name, as far as the agent asks it to.
ZSTD = f"""#!{sys.executable}
import sys, zlib
words = [word for word in sys.argv[1:] if not word.startswith("-")]
data = open(words[0], "rb").read() if words else sys.stdin.buffer.read()
magic = {layers.ZSTD_MAGIC!r}
sys.stdout.buffer.write(zlib.decompress(data[4:]) if "-dcq" in sys.argv else magic + zlib.compress(data))
"""
# `save` prints a file, `load` keeps what it was given; either fails when it is told to.
DOCKER = f"""#!{sys.executable}
import os, sys
from pathlib import Path
folder = Path(__file__).parent
if (folder / "fail").exists():
    sys.exit("docker: " + (folder / "fail").read_text())
if sys.argv[1] == "save":
    sys.stdout.buffer.write((folder / "saved").read_bytes())
elif sys.argv[1] == "load":
    (folder / "loaded").write_bytes(sys.stdin.buffer.read())
elif sys.argv[1:3] == ["image", "inspect"]:
    if not (folder / "inspected").exists():
        sys.exit("No such image")
    print((folder / "inspected").read_text())
elif sys.argv[1] == "info":
    print("btrfs\\n/nowhere" if "Driver" in sys.argv[-1] else folder / "root")
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


@pytest.fixture
def kept(tmp_path: Path, tools: Path) -> Path:
    """Return a store with the two layers and the image's manifest."""
    del tools
    folder = tmp_path / "store"
    made = []
    for number, data in enumerate(LAYERS):
        layer, temporary = store.store_layer([data], folder / "layers", 1, str(number))
        store.keep_layer(folder / "layers", layer, temporary)
        made.append(layer)
    store.write_manifest(folder, layout.Manifest(TAG, CONFIG, made))
    return folder


def serve(server: ThreadingHTTPServer) -> Iterator[str]:
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(kept: Path) -> Iterator[str]:
    """Return the address of an offer of the store."""
    yield from serve(offer.OfferServer(("127.0.0.1", 0), kept, ["127.0.0.1"], TAG))


def get(url: str, path: str, headers: dict[str, str] | None = None, verb: str = "GET") -> tuple[int, bytes, Any]:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.request(verb, path, headers=headers or {})
    reply = connection.getresponse()
    return reply.status, reply.read(), reply.headers


def manifest_of(kept: Path) -> Any:
    return layout.manifest_from_json((kept / "images" / layout.tag_file(TAG)).read_text(encoding="utf-8"))


def overlay2(root: Path, layer: bytes, chain: str, name: str, content: bytes) -> None:
    """Lay out a layer as Docker does: the file unpacked, the rest of its tar in tar-split.json.gz."""
    at = layer.index(content)
    folder = root / "image" / "overlay2" / "layerdb" / "sha256" / chain.partition(":")[2]
    folder.mkdir(parents=True)
    (folder / "cache-id").write_text("cache\n", encoding="utf-8")
    diff = root / "overlay2" / "cache" / "diff"
    diff.mkdir(parents=True)
    (diff / name).write_bytes(content)
    entries: list[dict[str, Any]] = [
        {"type": 2, "payload": base64.b64encode(layer[:at]).decode(), "position": 0},
        {"type": 1, "name_raw": base64.b64encode(f"./{name}".encode()).decode(), "size": len(content), "position": 1},
        {"type": 1, "name": "empty", "size": 0, "position": 2},
        {"type": 2, "payload": base64.b64encode(layer[at + len(content) :]).decode(), "position": 3},
    ]
    with gzip.open(folder / "tar-split.json.gz", "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(entry) + "\n" for entry in entries)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "layer.tar files": bytes,
    "gzip blobs": gzip.compress,
    "zstd blobs": lambda data: bytes(layers.ZSTD_MAGIC) + zlib.compress(data),
}


def saved(layers: list[bytes], way: str) -> bytes:
    """Return what `docker save` gives: with layer.tar files, or, newer, with blobs as they were pulled."""
    newer = "blobs" in way
    names = [f"blobs/sha256/{n}" if newer else f"{n}/layer.tar" for n in range(len(layers))]
    config = "blobs/sha256/config" if newer else "config.json"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in [
            *((name, PACKED[way](data)) for name, data in zip(names, layers, strict=True)),
            (config, CONFIG.encode()),
            ("manifest.json", json.dumps([{"Config": config, "Layers": names}]).encode()),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
