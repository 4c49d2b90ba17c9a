# SPDX-License-Identifier: Apache-2.0
"""Measure the client of `playbooks/bench.yml` itself, against a local server that does no work.

    make bench-client
    make bench-client ARGS='--concurrency 1 16 256'

Prints, for each number of requests at once, what client and connection add to a time to first token, how long after
it was sent a token is seen, and how many chunks a second the client takes. docs/roles/bench.md says how to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
for _path in (REPO / ".collections", REPO):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import BenchError  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.overhead import client_overhead  # noqa: E402

CONCURRENCY = (1, 4, 16, 64, 256)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCY), help="requests at once")
    given = parser.parse_args()
    try:
        rows = asyncio.run(client_overhead(given.concurrency, lambda _words: None))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'N':>5} {'first token p50':>16} {'p99':>9} {'token seen p50':>15} {'p99':>9} {'chunks/s':>10}")
    for row in rows:
        share, lag = row["ttft_share_s"], row["token_lag_s"]
        print(
            f"{row['concurrency']:>5} {share['p50'] * 1000:>13.2f} ms {share['p99'] * 1000:>6.1f} ms "
            f"{lag['p50'] * 1000:>12.2f} ms {lag['p99'] * 1000:>6.1f} ms {row['chunks_per_s']:>10.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
