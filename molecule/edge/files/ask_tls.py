# SPDX-License-Identifier: Apache-2.0
"""Ask the API behind TLS from outside: the certificate, the key, what is closed, and whether tokens come one by one."""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

HOST = sys.argv[1]
BASE = f"https://{HOST}"
KEY = os.environ["VLLM_API_KEY"]
TOKENS = 12


def context() -> ssl.SSLContext:
    """Trust the certificate that the head shows, and check that it is for this address."""
    return ssl.create_default_context(cadata=ssl.get_server_certificate((HOST, 443)))


def status(trust: ssl.SSLContext, path: str, *, key: bool) -> int:
    """Return the status of a GET."""
    request = urllib.request.Request(BASE + path, headers={"Authorization": f"Bearer {KEY}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=20, context=trust) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def arrivals(trust: ssl.SSLContext) -> list[float]:
    """Return the seconds at which the pieces of a streamed completion arrive."""
    data = json.dumps({"model": "molecule/edge-two", "prompt": "x", "max_tokens": TOKENS, "stream": True}).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    begun = time.monotonic()
    request = urllib.request.Request(f"{BASE}/v1/completions", data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=60, context=trust) as answer:
        return [time.monotonic() - begun for line in answer if line.startswith(b"data: {")]


def main() -> None:
    """Ask, and fail with what is not as it should be."""
    trust = context()
    asked = {
        "models with the key": (status(trust, "/v1/models", key=True), 200),
        "models without the key": (status(trust, "/v1/models", key=False), 401),
        "health": (status(trust, "/health", key=False), 200),
        "metrics, which the engine gives without a key": (status(trust, "/metrics", key=True), 200),
        "metrics without the key": (status(trust, "/metrics", key=False), 401),
        "what is not passed on": (status(trust, "/pause", key=True), 404),
        "what is below a closed path": (status(trust, "/health/../pause", key=True), 404),
    }
    wrong = [f"{what}: {got} instead of {wanted}" for what, (got, wanted) in asked.items() if got != wanted]
    times = arrivals(trust)
    spread_s = times[-1] - times[0] if times else 0.0
    if len(times) < TOKENS or spread_s < 0.05 * TOKENS:
        wrong.append(f"{len(times)} pieces of the stream came within {spread_s:.2f} s: they were held back")
    if wrong:
        raise SystemExit("; ".join(wrong))
    print(f"{len(times)} pieces over {spread_s:.2f} s")


if __name__ == "__main__":
    main()
