# SPDX-License-Identifier: Apache-2.0
"""The Docker Engine of this node: its pull over the socket, and the sums of what it reports."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import ImageError
from ansible_collections.gb10.cluster.plugins.module_utils._image.progress import Progress

DOCKER_SOCKET = "/var/run/docker.sock"


class _DockerConnection(http.client.HTTPConnection):
    """HTTP to the Docker Engine's socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(DOCKER_SOCKET)


def engine_pull(name: str, digest: str) -> Iterator[dict[str, Any]]:
    """Make the Docker Engine pull an image by its digest; yield its events as they arrive.

    :raises ImageError: it refuses, or does not answer.
    """
    connection = _DockerConnection("localhost")
    try:
        connection.request("POST", f"/images/create?fromImage={quote(name, safe='')}&tag={quote(digest, safe='')}")
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

    ``sizes``: bytes of each layer as the registry sends it, by the 12 digits that the engine names it with.
    """

    sizes: Mapping[str, int]
    progress: Progress
    received: dict[str, int] = field(default_factory=dict)
    unpacked: dict[str, int] = field(default_factory=dict)
    existing: set[str] = field(default_factory=set)

    def take(self, event: dict[str, Any]) -> None:
        """Count one event.

        :raises ImageError: the event is an error of the engine.
        """
        if "error" in event:
            raise ImageError(f"The Docker Engine aborted the pull: {event['error']}")
        status, short = event.get("status"), str(event.get("id", ""))
        size = self.sizes.get(short, 0)
        current = min(int((event.get("progressDetail") or {}).get("current") or 0), size)
        if status == "Already exists":
            self.existing.add(short)
        elif status == "Downloading":
            self.received[short] = current
        elif status in ("Verifying Checksum", "Download complete"):
            self.received[short] = size
        elif status == "Extracting":
            self.unpacked[short] = current
        elif status == "Pull complete":
            self.unpacked[short] = size
        total = sum(size for short, size in self.sizes.items() if short not in self.existing)
        self.progress.total = self.progress.unpack_total = total
        self.progress.received = sum(self.received.values())
        self.progress.unpacked = sum(self.unpacked.values())
