# SPDX-License-Identifier: Apache-2.0
"""What both HTTP servers of an image's way share: answers with one open range."""

from __future__ import annotations

import re
from http.server import BaseHTTPRequestHandler
from typing import Any


def range_start(header: str | None, size: int) -> int | None:
    """Return where an open range begins, in bytes: 0 without one, None when it cannot be satisfied."""
    if not header:
        return 0
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header.strip())
    if match is None:
        return 0
    start = int(match.group(1))
    return start if start < size else None


class RangeHandler(BaseHTTPRequestHandler):
    """Answers HTTP/1.1 requests without a log line for each."""

    protocol_version = "HTTP/1.1"

    def begin(self, size: int) -> int | None:
        """Send the head of an answer whose body has a number of bytes.

        :returns: the first byte that the client asks for; None after an error was sent.
        """
        start = range_start(self.headers.get("Range"), size)
        if start is None:
            self.send_error(416)
            return None
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        self.wfile.flush()
        return start

    def log_message(self, *_words: Any) -> None:
        return
