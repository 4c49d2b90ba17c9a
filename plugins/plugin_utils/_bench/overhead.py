# SPDX-License-Identifier: Apache-2.0
"""What the client itself adds to every figure: it is measured against a server that does no work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import server as bench_server
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import (
    Asked,
    BenchError,
    Client,
    Endpoint,
    Heard,
    connect,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.run import WARM_UP, Say
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.stats import summary

#: What is sent to the server without work: long enough to have gaps, short enough for 256 at once.
OVERHEAD_PROMPT = "x" * 400
OVERHEAD_TOKENS = 20
OVERHEAD_GAP_S = 0.05
OVERHEAD_LEAD_S = 0.5


@asynccontextmanager
async def zero_work_server(behaviour: bench_server.Behaviour) -> AsyncIterator[str]:
    """Run the server without work as a process of its own; yield its URL.

    Raises:
        BenchError: it did not start.
    """
    command = [sys.executable, str(Path(bench_server.__file__).resolve())]
    command += ["--ttft", str(behaviour.ttft_s), "--gap", str(behaviour.gap_s), "--slots", str(behaviour.slots)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise BenchError("The local server that measures the client has no pipes.")
    try:
        # It ends with the process, however long that takes to start.
        line = await process.stdout.readline()
        try:
            port = int(json.loads(line)["port"])
        except (ValueError, KeyError) as error:
            process.stdin.close()
            words = (await process.stderr.read()).decode(errors="replace").strip()
            raise BenchError(f"The local server that measures the client did not start: {words or line!r}") from error
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 5)
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _client(behaviour: bench_server.Behaviour) -> AsyncIterator[Client]:
    async with zero_work_server(behaviour) as url, connect(Endpoint(url, bench_server.MODEL, stall_s=60)) as client:
        yield client


def _lags(heard: Sequence[Heard], handled: Mapping[str, Mapping[str, Any]], begun_s: float) -> list[float]:
    """Return how long after it was sent each token was seen: both on the machine's one clock."""
    found = []
    for each in heard:
        request = each.request
        sent = handled[str(request.number)]["sent_s"]
        if request.first_s is None or len(sent) != len(request.gaps_s) + 1:
            continue
        at_s = begun_s + request.first_s
        found.append(at_s - sent[0])
        for gap, sent_s in zip(request.gaps_s, sent[1:], strict=True):
            at_s += gap
            found.append(at_s - sent_s)
    return found


async def client_overhead(concurrency: Sequence[int], say: Say) -> list[dict[str, Any]]:
    """Measure the client against the server without work, at each concurrency.

    ``token_lag_s`` is how long after the server sent a token the client saw it, with tokens every 50 ms;
    ``ttft_share_s`` what client and connection add to a time to first token; ``chunks_per_s`` how many chunks
    the client takes when they come as fast as the server can send them.
    """
    found = []
    for count in concurrency:
        paced = bench_server.Behaviour(ttft_s=OVERHEAD_LEAD_S, gap_s=OVERHEAD_GAP_S)
        async with _client(paced) as client:
            asked = [Asked(OVERHEAD_PROMPT, OVERHEAD_TOKENS, request_id=str(number)) for number in range(count)]
            await client.burst([Asked(WARM_UP, 2, request_id="warm-up")])
            heard = await client.burst(asked)
            handled = {each["request_id"]: each for each in await client.log()}
            begun_s = client.started_s
        failed = [each.request for each in heard if not each.request.ok]
        if failed:
            raise BenchError(
                f"The client lost {len(failed)} of {count} requests to its own local server "
                f"({failed[0].failure}: {failed[0].detail}): this machine cannot measure {count} requests at once."
            )
        lags = _lags(heard, handled, begun_s)
        shares = [
            (each.request.ttft_s or 0.0)
            - (handled[str(each.request.number)]["sent_s"][0] - handled[str(each.request.number)]["received_s"])
            for each in heard
        ]
        asked = [Asked(OVERHEAD_PROMPT, 4 * OVERHEAD_TOKENS, request_id=str(number)) for number in range(count)]
        async with _client(bench_server.Behaviour()) as client:
            flat_out = await client.burst(asked)
        wall_s = max(each.request.ended_s for each in flat_out) - min(each.request.sent_s for each in flat_out)
        row = {
            "concurrency": count,
            "token_lag_s": summary(lags),
            "ttft_share_s": summary(shares),
            "chunks_per_s": 4 * OVERHEAD_TOKENS * count / wall_s,
        }
        found.append(row)
        say(
            f"the client at {count}: sees a token {statistics.median(lags) * 1000:.1f} ms after it was sent, adds "
            f"{statistics.median(shares) * 1000:.1f} ms to a first token, takes {row['chunks_per_s']:.0f} chunks/s"
        )
    return found
