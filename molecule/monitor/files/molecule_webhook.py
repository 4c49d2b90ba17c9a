# SPDX-License-Identifier: Apache-2.0
"""Takes what Alertmanager sends and keeps each message as a line of a file."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

KEPT = Path(sys.argv[2])


class Taker(BaseHTTPRequestHandler):
    """Keeps what is posted."""

    def do_POST(self) -> None:
        """Keep one message."""
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with KEPT.open("a", encoding="utf-8") as kept:
            kept.write(json.dumps({"path": self.path, **message}) + "\n")
        self.send_response(200)
        self.end_headers()


KEPT.parent.mkdir(parents=True, exist_ok=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Taker).serve_forever()
