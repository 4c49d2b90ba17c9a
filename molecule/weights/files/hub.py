# SPDX-License-Identifier: Apache-2.0
"""A model hub on 127.0.0.1 as far as the role asks one: the list of a revision's files, and the files.

    python3 hub.py PORT DIRECTORY COMMIT TOKENFILE

DIRECTORY holds <organisation>/<repository>. Who does not show the token gets 401.
"""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT, ROOT, COMMIT, TOKEN = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]).read_text().strip()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def answer(self, code: int, body: bytes) -> None:
        """Send a complete answer."""
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Answer for the commit alone."""
        words = self.path.split("?")[0].strip("/").split("/")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401, b"")
        elif words[:2] == ["api", "models"] and words[4:] == ["revision", COMMIT]:
            listed = []
            for path in sorted((ROOT / words[2] / words[3]).iterdir()):
                data = path.read_bytes()
                entry = {"rfilename": path.name, "size": len(data)}
                if path.suffix == ".safetensors":
                    entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                else:
                    blob = b"blob %d\0" % len(data) + data
                    entry["blobId"] = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
                listed.append(entry)
            self.answer(200, json.dumps({"sha": COMMIT, "siblings": listed}).encode())
        elif words[2:4] == ["resolve", COMMIT]:
            data = (ROOT / words[0] / words[1] / words[4]).read_bytes()
            start = int((self.headers["Range"] or "bytes=0-")[6:-1])
            self.answer(206 if start else 200, data[start:])
        else:
            self.answer(404, b"")


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
