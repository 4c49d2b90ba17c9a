# SPDX-License-Identifier: Apache-2.0
"""The Docker Engine of this node: its command line, its pull over the socket, and the sums of what a pull reports."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import ImageError, Layer, Manifest
from ansible_collections.gb10.cluster.plugins.module_utils._image.progress import Progress

DOCKER_SOCKET = "/var/run/docker.sock"


def docker(*argv: str) -> str:
    """Return the output of a docker command.

    :raises ImageError: it failed.
    """
    done = subprocess.run(["docker", *argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImageError(f"docker {' '.join(argv)} failed: {done.stderr.strip()}")
    return done.stdout


class _DockerConnection(http.client.HTTPConnection):
    """HTTP to the Docker Engine's socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(DOCKER_SOCKET)


def engine_pull(name: str, tag: str) -> Iterator[dict[str, Any]]:
    """Make the Docker Engine pull an image; yield its events as they arrive.

    :raises ImageError: it refuses, or does not answer.
    """
    connection = _DockerConnection("localhost")
    try:
        connection.request("POST", f"/images/create?fromImage={quote(name, safe='')}&tag={quote(tag, safe='')}")
        reply = connection.getresponse()
        if reply.status != 200:
            raise ImageError(f"The Docker Engine refuses to pull: {reply.read().decode(errors='replace').strip()}")
        for line in reply:
            if line.strip():
                yield json.loads(line)
    except OSError as problem:
        raise ImageError(f"The Docker Engine does not answer at {DOCKER_SOCKET}: {problem}") from problem
    finally:
        connection.close()


@dataclass
class EngineEvents:
    """Sums up the events of a pulling Docker Engine.

    ``taken`` is called with the short id of each layer that the engine has unpacked; ``held`` are diff ids that need
    not be fetched.
    """

    manifest: Manifest
    progress: Progress
    taken: Callable[[str], None]
    held: frozenset[str] = frozenset()
    unpacked: dict[str, int] = field(default_factory=dict)
    existing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._sum()

    def take(self, event: dict[str, Any]) -> None:
        """Count one event.

        :raises ImageError: the event is an error of the engine.
        """
        if "error" in event:
            raise ImageError(f"The Docker Engine aborted the pull: {event['error']}")
        status, short = event.get("status"), event.get("id", "")
        if status == "Already exists":
            self.existing.add(short)
        elif status == "Extracting":
            self.unpacked[short] = int((event.get("progressDetail") or {}).get("current") or 0)
        elif status == "Pull complete":
            self.unpacked[short] = sum(layer.bytes for layer in self._layers(short))
            self.taken(short)
        self._sum()

    def _layers(self, short: str = "") -> list[Layer]:
        return [layer for layer in self.manifest.distinct if layer.hex.startswith(short)]

    def _sum(self) -> None:
        coming = [layer for layer in self._layers() if layer.hex[:12] not in self.existing]
        self.progress.total = sum(layer.file_bytes for layer in coming if layer.diff_id not in self.held)
        self.progress.unpack_total = sum(layer.bytes for layer in coming)
        self.progress.unpacked = sum(self.unpacked.values())
