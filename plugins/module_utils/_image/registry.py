# SPDX-License-Identifier: Apache-2.0
"""A registry of one image on 127.0.0.1, from which this node's Docker Engine pulls what an offer provides."""

from __future__ import annotations

import json
import subprocess
from http.server import ThreadingHTTPServer
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._image.fetch import Fetcher
from ansible_collections.gb10.cluster.plugins.module_utils._image.layers import held_layers, overlay2_layer
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import (
    CHUNK,
    ImageError,
    Layer,
    Manifest,
    digest_of,
)
from ansible_collections.gb10.cluster.plugins.module_utils._image.ranges import RangeHandler

#: The first byte of a TLS greeting.
TLS_HANDSHAKE = b"\x16"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


def registry_manifest(manifest: Manifest) -> bytes:
    """Return the image as a registry describes it: every layer an uncompressed tar under its diff id."""
    config = manifest.config.encode()
    layers = [
        {"mediaType": LAYER_TYPE, "size": layer.bytes, "digest": layer.diff_id}
        for layer in manifest.layers
    ]  # fmt: skip
    described = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "size": len(config), "digest": digest_of(config)},
        "layers": layers,
    }
    return json.dumps(described).encode()


class RegistryHandler(RangeHandler):
    """Answers the Docker Engine."""

    server: RegistryServer

    def handle_one_request(self) -> None:
        """Answer one request, and a TLS greeting as an engine with the containerd image store expects it.

        That engine tries TLS first, also on 127.0.0.1, and falls back when the first bytes of the answer are HTTP's.
        """
        if self.rfile.peek(1)[:1] == TLS_HANDSHAKE:  # type: ignore[attr-defined]
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.close_connection = True
            return
        super().handle_one_request()

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802  (name given by http.server)
        path = self.path.partition("?")[0]
        manifest = self.server.manifest
        if path == "/v2/":
            self.reply(b"{}", "application/json")
        elif "/manifests/" in path:
            self.reply(registry_manifest(manifest), MANIFEST_TYPE)
        elif path.endswith("/blobs/" + digest_of(manifest.config.encode())):
            self.reply(manifest.config.encode(), CONFIG_TYPE)
        elif (diff_id := path.rpartition("/")[2]) in self.server.fetcher.layers and "/blobs/" in path:
            self.layer(self.server.fetcher.layers[diff_id])
        else:
            self.send_error(404)

    def reply(self, data: bytes, kind: str) -> None:
        """Send a small document."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", digest_of(data))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def layer(self, layer: Layer) -> None:
        """Send a layer's tar; the engine sees none of it before all of it was fetched and verified."""
        start = self.begin(layer.bytes)
        if start is None or self.command != "GET":
            return
        if layer.diff_id in self.server.held:
            self.own(self.server.held[layer.diff_id], start)
            return
        try:
            path = self.server.fetcher.get(layer.diff_id)
        except ImageError as problem:
            self.server.problems.append(str(problem))
            self.close_connection = True
            return
        with subprocess.Popen(["zstd", "-dcq", str(path)], stdout=subprocess.PIPE) as zstd:
            assert zstd.stdout is not None
            zstd.stdout.read(start)
            try:
                while chunk := zstd.stdout.read(CHUNK):
                    self.wfile.write(chunk)
            except OSError:
                zstd.kill()  # the engine has gone; it asks again
                self.close_connection = True

    def own(self, chain: str, start: int) -> None:
        """Send a layer that the engine has, but not under this digest: no other node need send it."""
        try:
            for chunk in overlay2_layer(self.server.root, chain):
                if start < len(chunk):
                    self.wfile.write(chunk[start:])
                start = max(0, start - len(chunk))
        except OSError as problem:
            print(f"layer {chain[:19]} of this node was not sent completely: {problem}", flush=True)
        self.close_connection = True  # one that came out shorter must not look as if more were to come


class RegistryServer(ThreadingHTTPServer):
    """One image on 127.0.0.1, which every Docker Engine accepts without TLS."""

    daemon_threads = True

    def __init__(self, manifest: Manifest, fetcher: Fetcher, root: Path) -> None:
        """Listen on a free port.

        :param root: ``DockerRootDir`` of ``docker info``.
        """
        super().__init__(("127.0.0.1", 0), RegistryHandler)
        self.root = root
        self.held = held_layers(root, (layer.diff_id for layer in manifest.layers))
        self.manifest = manifest
        self.fetcher = fetcher
        self.problems: list[str] = []
