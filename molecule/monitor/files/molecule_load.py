# SPDX-License-Identifier: Apache-2.0
"""Asks the engine for completions, now few and now many at once, until it is stopped."""

from __future__ import annotations

import json
import math
import os
import random
import sys
import threading
import time
import urllib.request

URL, MODEL = sys.argv[1:3]
MOST = 6


def ask(slots: threading.Semaphore) -> None:
    """Ask for one completion and read it; a refusal is what an engine that starts gives."""
    body = {"model": MODEL, "prompt": "word " * random.randint(200, 4000), "max_tokens": random.randint(20, 160)}
    request = urllib.request.Request(
        f"{URL}/v1/completions",
        json.dumps({**body, "stream": True}).encode(),
        {"Authorization": f"Bearer {os.environ['KEY']}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=3600) as answer:
            while answer.read(4096):
                pass
    except OSError:
        time.sleep(1)
    finally:
        slots.release()


def main() -> None:
    """Ask for ever."""
    slots, start = threading.Semaphore(MOST), time.monotonic()
    while True:
        slots.acquire()
        threading.Thread(target=ask, args=(slots,), daemon=True).start()
        time.sleep(random.expovariate(1.0) * (1.2 + math.sin((time.monotonic() - start) / 15)))


if __name__ == "__main__":
    main()
