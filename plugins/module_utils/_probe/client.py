# SPDX-License-Identifier: Apache-2.0
"""The HTTP of the probe: no proxy, no redirect, a limit on silence, a key that stays in a header.

Standard library only: the modules and the periodic health check share it.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.error import HTTPError, URLError

from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import ProbeHttpError, Reply, ask

MAX_BODY_BYTES = 8 << 20
MAX_ERROR_BYTES = 65536
#: A request that got no answer, or not all of it; a server that dies in the middle of a chunk is an HTTPException.
NO_ANSWER = (OSError, ValueError, http.client.HTTPException)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like others: following it would carry the key elsewhere."""

    def redirect_request(self, *_given: Any) -> None:
        """Follow nothing."""


def error_word(problem: BaseException) -> str:
    """Return `refused`, `timeout`, or the client's own words for a request that got no HTTP answer."""
    reason = problem.reason if isinstance(problem, URLError) else problem
    if isinstance(reason, ConnectionRefusedError):
        return "refused"
    if isinstance(reason, TimeoutError) or "timed out" in str(reason):
        return "timeout"
    return str(reason) or type(reason).__name__


class ProbeClient:
    """Client of `_probe.api`.

    url: scheme, host and port; silence_seconds: time without a byte after which a completion is given up;
    short_seconds: the same for the quick questions; ca_path: a file with the certificates that are trusted.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        silence_seconds: float = 120.0,
        short_seconds: float = 5.0,
        validate_certs: bool = True,
        ca_path: str | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.silence_seconds = silence_seconds
        self.short_seconds = short_seconds
        self.headers = {"User-Agent": "gb10-cluster-probe"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        handlers: list[Any] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if self.url.startswith("https:"):
            context = ssl.create_default_context(cafile=ca_path)
            if not validate_certs:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def _open(self, path: str, payload: Mapping[str, Any] | None, timeout_seconds: float) -> Any:
        data = None if payload is None else json.dumps(payload).encode()
        headers = {**self.headers, **({"Content-Type": "application/json"} if data else {})}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        return self._opener.open(request, timeout=timeout_seconds)

    def _ask(self, path: str, payload: Mapping[str, Any] | None, timeout_seconds: float) -> Reply:
        try:
            try:
                with self._open(path, payload, timeout_seconds) as answer:
                    return Reply(int(answer.status), answer.read(MAX_BODY_BYTES).decode("utf-8", "replace"))
            except HTTPError as problem:
                return Reply(int(problem.code), problem.read(MAX_ERROR_BYTES).decode("utf-8", "replace"))
        except NO_ANSWER as problem:
            return Reply(0, "", error_word(problem))

    def get(self, path: str, *, patient: bool = False) -> Reply:
        """GET a path; never raises."""
        return self._ask(path, None, self.silence_seconds if patient else self.short_seconds)

    def post(self, path: str, payload: Mapping[str, Any]) -> Reply:
        """POST JSON; never raises."""
        return self._ask(path, payload, self.silence_seconds)

    def stream(self, path: str, payload: Mapping[str, Any]) -> Iterator[str]:
        """POST JSON and yield lines as they come; raises ProbeHttpError with what went wrong."""
        left = MAX_BODY_BYTES
        try:
            try:
                with self._open(path, payload, self.silence_seconds) as answer:
                    while raw := answer.readline(left + 1):
                        left -= len(raw)
                        if left < 0:
                            raise ProbeHttpError(0, f"the answer is longer than {MAX_BODY_BYTES >> 20} MiB")
                        yield raw.decode("utf-8", "replace").rstrip("\r\n")
            except HTTPError as problem:
                body = problem.read(MAX_ERROR_BYTES).decode("utf-8", "replace").strip()
                raise ProbeHttpError(int(problem.code), f"HTTP {problem.code}: {body[:300]}") from problem
        except NO_ANSWER as problem:
            word = error_word(problem)
            said = f"no byte for {self.silence_seconds:.0f} s" if word == "timeout" else word
            raise ProbeHttpError(0, said) from problem


def probe_front(api_port: int, proxy_port: int = 0) -> dict[str, Any]:
    """Return what a client without a key meets on this node; for `_probe.front`.

    :param api_port: where the engine listens; proxy_port: where the proxy in front of it does, 0 without one.
    :returns: ``port`` that clients use, ``proxied``, ``status`` (0 without an answer) and ``error`` of a request for
        the models, ``open`` (they are listed without a key), ``engine`` (status of the engine's own /health).
    """
    port = proxy_port or api_port
    reply = ask(ProbeClient(f"http://127.0.0.1:{port}"), "/v1/models")
    engine = ask(ProbeClient(f"http://127.0.0.1:{api_port}"), "/health").status
    return {
        "port": port,
        "proxied": bool(proxy_port),
        "status": reply.status,
        "error": reply.error,
        "open": reply.status == 200,
        "engine": engine,
    }
