# SPDX-License-Identifier: Apache-2.0
"""What the API's proxy costs: the same requests to one server directly and through nginx, in turns.

    make bench-proxy
    make bench-proxy ARGS='--concurrency 1 16 --rounds 9 --nginx /usr/sbin/nginx'

The server does no work (it is the one that playbooks/bench.yml measures its client with), so all that is seen is
client, connection and proxy, and the ratios are the worst that can be: an engine's own time comes on top of both sides.
nginx runs with the configuration of role edge, with a key, and without TLS. Printed are medians over the rounds:

- the time to first token of a short prompt, and of one of about 256K tokens (1.6 MB);
- tokens/s of all requests together, with tokens every 20 ms, as an engine gives them, and as fast as they come.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

REPO = Path(__file__).resolve().parents[1]
for _path in (REPO / ".collections", REPO):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

from ansible_collections.gb10.cluster.plugins.module_utils._edge.proxy import key_map  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import (  # noqa: E402
    Asked,
    BenchError,
    Endpoint,
    connect,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.overhead import zero_work_server  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.server import MODEL, Behaviour  # noqa: E402
from lab.ports import free_port  # noqa: E402

KEY = "benchmark"
CONCURRENCY = (1, 16, 64)
ROUNDS = 5
SHORT = "x" * 400
LONG = "prompt " * (256 * 1024 * 6 // 7)
#: A token every 20 ms: 50 tokens/s for one request.
PACED = Behaviour(ttft_s=0.1, gap_s=0.02)
TOKENS = 100


def configuration(folder: Path, port: int, upstream: int) -> str:
    """Return nginx' configuration as role edge writes it, with every path of the node below a folder."""
    loader = jinja2.FileSystemLoader(REPO / "roles/edge/templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["bool"] = bool
    text = environment.get_template("nginx.conf.j2").render(
        edge_tls=False,
        edge_max_body="256m",
        edge_silence_seconds=3600,
        edge_paths=["/v1/"],
        edge_open_paths=[],
        __edge_key={"keyed": True},
        _edge_target={"api_port": upstream, "proxy_port": port},
        _edge_listeners=[{"address": "127.0.0.1", "port": port, "tls": False}],
        _edge_upstream={"address": "127.0.0.1", "port": upstream},
    )
    for place in ("/run/gb10-edge", "/etc/gb10/edge"):
        text = text.replace(place, str(folder))
    return text


def listens(port: int) -> bool:
    """Return whether a port of the loopback takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def proxy(nginx: str, upstream: int) -> Iterator[str]:
    """Run nginx in front of a port; yield its URL.

    :raises BenchError: it does not start, with what it prints.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o755)
        (folder / "key.conf").write_text(key_map([KEY]), encoding="ascii")
        (folder / "nginx.conf").write_text(configuration(folder, port, upstream), encoding="ascii")
        command = [nginx, "-p", name, "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                while process.poll() is None and not listens(port):
                    time.sleep(0.02)
                if process.poll() is not None:
                    said = process.stderr.read() if process.stderr else ""
                    raise BenchError(f"{nginx} ended with {process.returncode}: {said.strip()}")
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


async def first_token_s(url: str, prompt: str) -> float:
    """Return the seconds to the first token of one request."""
    async with connect(Endpoint(url, MODEL, api_key=KEY, stall_s=60)) as client:
        [heard] = await client.burst([Asked(prompt, 2)])
    if not heard.request.ok or heard.request.ttft_s is None:
        raise BenchError(f"{url}: {heard.request.failure}: {heard.request.detail}")
    return heard.request.ttft_s


async def tokens_per_s(url: str, count: int) -> float:
    """Return the tokens a second of so many requests at once, from the first one sent to the last one ended."""
    async with connect(Endpoint(url, MODEL, api_key=KEY, stall_s=60)) as client:
        heard = await client.burst([Asked(SHORT, TOKENS) for _each in range(count)])
    failed = [each.request for each in heard if not each.request.ok]
    if failed:
        raise BenchError(f"{url}: {len(failed)} of {count} requests failed: {failed[0].failure}: {failed[0].detail}")
    begun, ended = min(each.request.sent_s for each in heard), max(each.request.ended_s for each in heard)
    return TOKENS * count / (ended - begun)


async def measure(nginx: str, concurrency: Sequence[int], rounds: int) -> list[tuple[str, float, float]]:
    """Return rows of (what, directly, through the proxy), medians over the rounds; the sides take turns."""
    figures: dict[str, tuple[list[float], list[float]]] = {}

    async def both(what: str, urls: Sequence[str], ask: Any, *given: Any) -> None:
        sides = figures.setdefault(what, ([], []))
        for url, side in zip(urls, sides, strict=True):
            side.append(await ask(url, *given))

    flat_out = Behaviour()
    for behaviour, pace in ((flat_out, "flat out"), (PACED, "paced")):
        async with zero_work_server(behaviour) as direct:
            with proxy(nginx, int(direct.rpartition(":")[2])) as through:
                urls = (direct, through)
                for url in urls:
                    await tokens_per_s(url, 1)
                for _round in range(rounds):
                    if behaviour is flat_out:
                        await both("TTFT, short prompt (ms)", urls, first_token_s, SHORT)
                        await both("TTFT, 256K tokens (ms)", urls, first_token_s, LONG)
                    for count in concurrency:
                        await both(f"tokens/s, {pace}, {count} at once", urls, tokens_per_s, count)
    scale = {what: 1000.0 if "(ms)" in what else 1.0 for what in figures}
    return [
        (what, scale[what] * statistics.median(direct), scale[what] * statistics.median(through))
        for what, (direct, through) in figures.items()
    ]


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCY), help="requests at once")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measurements of each figure on each side")
    parser.add_argument("--nginx", default=shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or "nginx")
    given = parser.parse_args()
    try:
        rows = asyncio.run(measure(given.nginx, given.concurrency, given.rounds))
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'':<32} {'direct':>10} {'proxy':>10} {'ratio':>7}")
    for what, direct, through in rows:
        print(f"{what:<32} {direct:>10.2f} {through:>10.2f} {through / direct:>7.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
