# SPDX-License-Identifier: Apache-2.0
"""Asks every query of the Grafana dashboards; ends with an error that names those that a Prometheus cannot answer.

ask_dashboards.py URL DASHBOARD.json ...
"""

from __future__ import annotations

import json
import math
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

RATE_INTERVAL = "30s"
#: Straight to the lab, whatever proxy this machine uses.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url: str, query: str) -> list[float]:
    """Return the values that a query yields now."""
    parameters = urllib.parse.urlencode({"query": query})
    with OPENER.open(f"{url}/api/v1/query?{parameters}", timeout=20) as answer:
        data = json.load(answer)["data"]
    return [float(each["value"][1]) for each in data["result"]]


def main() -> int:
    """Ask; returns the exit status."""
    url, asked, failed = sys.argv[1], 0, []
    for path in map(Path, sys.argv[2:]):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
                asked += 1
                try:
                    values = ask(url, query)
                except urllib.error.HTTPError as error:
                    failed.append(f"{path.name}, {panel['title']}: {query}: {error.read().decode()[:300]}")
                    continue
                if not [value for value in values if math.isfinite(value)]:
                    failed.append(f"{path.name}, {panel['title']}: {query} yields {values or 'nothing'}")
    print("\n".join([*failed, f"{asked} queries, {len(failed)} without an answer"]))
    return 1 if failed or not asked else 0


if __name__ == "__main__":
    sys.exit(main())
