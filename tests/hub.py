# SPDX-License-Identifier: Apache-2.0
"""A hub of the tests' own on loopback, with the addresses and answers of the real one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

#: Files of a repository: their bytes, or the size alone of one that nobody may fetch.
Files = Mapping[str, bytes | int]


def commit_of(files: Files) -> str:
    """Return the commit of a repository, which follows from its files."""
    return hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()


class LocalHub(ThreadingHTTPServer):
    """Serves repositories; ``seen`` has the path of each request.

    :param repositories: organisation/name → files.
    :param gated: organisation/name → the code with which it is refused without the token.
    """

    def __init__(
        self, repositories: Mapping[str, Files], gated: Mapping[str, int] | None = None, token: str = ""
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.gated, self.token = dict(repositories), dict(gated or {}), token
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *_args: object) -> None:
        """Print nothing."""

    def answer(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.seen.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
            repo, revision, name = "/".join(parts[2:4]), "/".join(parts[5:]), ""
        elif parts[2:3] == ["resolve"]:
            repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        else:
            self.answer(404)
            return
        files = hub.repositories.get(repo)
        allowed = hub.token and self.headers["Authorization"] == f"Bearer {hub.token}"
        if repo in hub.gated and not allowed:
            self.answer(hub.gated[repo])
        elif files is None or revision not in ("main", commit_of(files)):
            self.answer(404)
        elif not name:
            siblings = [_sibling(each, content) for each, content in files.items()]
            self.answer(200, json.dumps({"sha": commit_of(files), "siblings": siblings}).encode())
        else:
            content = files.get(name)
            self.answer(200, content) if isinstance(content, bytes) else self.answer(404)


def _sibling(name: str, content: bytes | int) -> dict[str, object]:
    size = content if isinstance(content, int) else len(content)
    data = content if isinstance(content, bytes) else b""
    blob = hashlib.sha1(f"blob {size}\0".encode() + data, usedforsecurity=False).hexdigest()
    entry: dict[str, object] = {"rfilename": name, "size": size, "blobId": blob}
    if name.endswith((".safetensors", ".bin", ".gguf")):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": size}
    return entry


@contextmanager
def serve(
    repositories: Mapping[str, Files], gated: Mapping[str, int] | None = None, token: str = ""
) -> Iterator[LocalHub]:
    """Serve repositories on a free port of loopback until the block ends."""
    hub = LocalHub(repositories, gated, token)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
