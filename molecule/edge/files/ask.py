# SPDX-License-Identifier: Apache-2.0
"""Ask the API through the proxy at a URL: paths of the list and beside it, odd spellings, a long prompt, a stream.

Behind https the certificate that is shown must be for the address of the URL.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
import time
from urllib.parse import urlsplit

URL = urlsplit(sys.argv[1])
HOST = URL.hostname or ""
KEY = os.environ["VLLM_API_KEY"]
TOKENS = 12
#: About 256K tokens in English, at six characters each.
LONG = "prompt " * (256 * 1024 * 6 // 7)
#: Read with the key and without it.
GUARDED = ("/v1/models", "/metrics", "/version")
CLOSED = (
    "/pause",
    "/invocations",
    "/update_weights",
    "/sleep",
    "/collective_rpc",
    "/docs",
    "/openapi.json",
    "/",
    "/metricsx",
)
#: Spellings of a closed path that a proxy and a server could understand differently.
ODD = (
    "/v1/../pause",
    "/v1/%2e%2e/pause",
    "/v1/..%2fpause",
    "/health/../pause",
    "//pause",
    "/health%00/pause",
    "/HEALTH/../pause",
)


def connect() -> http.client.HTTPConnection:
    """Return a new connection to the proxy."""
    if URL.scheme == "http":
        return http.client.HTTPConnection(HOST, URL.port, timeout=300)
    trust = ssl.create_default_context(cadata=ssl.get_server_certificate((HOST, URL.port or 443)))
    return http.client.HTTPSConnection(HOST, URL.port, timeout=300, context=trust)


def ask(path: str, *, key: str = "", body: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Return status, type and text of an answer; the path goes out as it is written here."""
    connection = connect()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = json.dumps(body) if body is not None else None
    connection.request("POST" if data else "GET", path, data, {**headers, "Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type") or "", answer.read().decode("utf-8", "replace")


def arrivals() -> list[float]:
    """Return the seconds at which the pieces of a streamed completion arrive."""
    data = json.dumps({"model": "molecule/edge-two", "prompt": "x", "max_tokens": TOKENS, "stream": True})
    connection = connect()
    begun = time.monotonic()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", data, headers)
    return [time.monotonic() - begun for line in connection.getresponse() if line.startswith(b"data: {")]


def main() -> None:
    """Ask, and fail with what is not as it should be."""
    wrong = []
    for path in GUARDED:
        seen = [ask(path, key=key)[0] for key in (KEY, "", KEY.upper(), KEY + "x")]
        # The stand-in has no /version: that its 404 comes from the engine shows that the path is passed on.
        if seen[1:] != [401, 401, 401] or seen[0] not in (200, 404):
            wrong.append(f"{path} with the key, without, with others: {seen}")
    wrong += [f"{path}: {status}" for path in (*CLOSED, *ODD) if (status := ask(path, key=KEY)[0]) not in (400, 404)]
    if ask("/health")[0] != 200:
        wrong.append("/health needs a key")
    status, kind, text = ask("/pause", key=KEY)
    if "edge_paths" not in text or not kind.startswith("application/json"):
        wrong.append(f"a closed path is answered as {kind}")
    body = {"model": "molecule/edge-two", "prompt": LONG}
    status, _kind, text = ask("/tokenize", key=KEY, body=body)
    if status != 200 or not json.loads(text).get("count"):
        wrong.append(f"/tokenize of {len(LONG) / 1e6:.1f} MB: {status} {text[:200]}")
    if ask("/tokenize", body=body)[0] != 401:
        wrong.append("/tokenize needs no key")
    times = arrivals()
    spread_s = times[-1] - times[0] if times else 0.0
    if len(times) < TOKENS or spread_s < 0.05 * TOKENS:
        wrong.append(f"{len(times)} pieces of the stream came within {spread_s:.2f} s: they were held back")
    if wrong:
        raise SystemExit("; ".join(wrong))
    print(f"{len(times)} pieces over {spread_s:.2f} s, {len(LONG) / 1e6:.1f} MB counted")


if __name__ == "__main__":
    main()
