# SPDX-License-Identifier: Apache-2.0
"""A registry on a lab's head that stands for a public one: it offers an image whose layers Docker there has already.

It gives an image's manifest and configuration and no layer, so that an image of gigabytes is published at once. Runs
with the node's Python: ``publish TAG`` prints the digest by which the image can be pulled, ``serve`` answers.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PORT = 5099
NAME = "lab/vllm"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
FILES = Path("/var/tmp/registry")
#: Docker's own copy of the configuration, whose digest is the image's identity.
CONFIGS = Path("/var/lib/docker/image/overlay2/imagedb/content/sha256")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers with files, a manifest with its own type."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=str(FILES))

    def guess_type(self, path: Any) -> str:
        return MANIFEST if "/manifests/" in str(path) else "application/octet-stream"


def publish(tag: str) -> str:
    """Offer a local image; return the digest of its manifest."""
    image = json.loads(subprocess.check_output(["docker", "image", "inspect", tag]))[0]
    config = (CONFIGS / image["Id"].removeprefix("sha256:")).read_bytes()
    kind = "application/vnd.docker.image.rootfs.diff.tar"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(config),
                "digest": image["Id"],
            },
            "layers": [{"mediaType": kind, "size": 1, "digest": each} for each in image["RootFS"]["Layers"]],
        }
    ).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    for name, data in ((f"manifests/{digest}", manifest), (f"blobs/{image['Id']}", config)):
        path = FILES / "v2" / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return digest


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        print(publish(sys.argv[2]))
    else:
        http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
