# SPDX-License-Identifier: Apache-2.0
"""Serve a store to the other nodes while an image is being distributed."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import CHUNK
from ansible_collections.gb10.cluster.plugins.module_utils._image.ranges import RangeHandler

#: An offer ends after so many seconds without an open connection: longer than a node takes to unpack a layer.
IDLE_SECONDS = 1800.0


class OfferHandler(RangeHandler):
    """Serves manifests, layers (with ranges) and complete images, read-only, to the nodes that are allowed."""

    #: A node that lost its power closes no connection.
    timeout = 300
    server: OfferServer

    def do_GET(self) -> None:  # noqa: N802  (name given by http.server)
        if self.server.allow and self.client_address[0] not in self.server.allow:
            self.send_error(403)
            return
        kind, _slash, name = self.path.lstrip("/").partition("/")
        if kind == "tarball" and name == self.server.tag:
            self.tarball(name)
        elif kind in ("images", "layers") and re.fullmatch(r"[A-Za-z0-9_.@-]+", name):
            self.file(self.server.store / kind / name)
        else:
            self.send_error(404)

    def file(self, path: Path) -> None:
        """Send a file of the store."""
        try:
            handle = path.open("rb")
        except OSError:
            self.send_error(404)
            return
        with handle:
            start = self.begin(os.fstat(handle.fileno()).st_size)
            if start is not None:
                self.connection.sendfile(handle, start)

    def tarball(self, tag: str) -> None:
        """Stream `docker save`, compressed; after a failure the last chunk is missing, which the receiver sees."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with (
            subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE) as save,
            subprocess.Popen(["zstd", "-1", "-T0", "-q", "-c"], stdin=save.stdout, stdout=subprocess.PIPE) as zstd,
        ):
            assert save.stdout is not None
            assert zstd.stdout is not None
            save.stdout.close()
            try:
                while chunk := zstd.stdout.read(CHUNK):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            except OSError:
                zstd.stdout.close()  # the receiver is gone: docker save ends too
        if save.returncode == 0 and zstd.returncode == 0:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True


class UnusedOfferError(Exception):
    """Ends an offer that a control node left open when it died."""


class OfferServer(ThreadingHTTPServer):
    """A store on one address, until it has been unused for a while."""

    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        store: Path,
        allow: Iterable[str],
        tag: str = "",
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """Listen.

        :param allow: addresses that may fetch; all when empty.
        :param tag: the image that may be fetched as a tarball.
        """
        super().__init__(address, OfferHandler)
        self.store = store
        self.allow = frozenset(allow)
        self.tag = tag
        self.idle_seconds = idle_seconds
        self.asked_at = time.monotonic()
        self.busy = 0
        self.counting = threading.Lock()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection; while it is open, the offer is in use."""
        with self.counting:
            self.busy += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.counting:
                self.busy -= 1
                self.asked_at = time.monotonic()

    def service_actions(self) -> None:
        """End serve_forever() with UnusedOfferError when the offer is no longer used."""
        if not self.busy and time.monotonic() - self.asked_at > self.idle_seconds:
            raise UnusedOfferError
