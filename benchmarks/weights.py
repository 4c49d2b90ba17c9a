# SPDX-License-Identifier: Apache-2.0
"""Measure how weights move, against rsync over ssh, on shaped links: `make bench-weights`.

Makes network namespaces of its own (a source, up to seven workers, a control node; veth pairs on a bridge, token
buckets at both ends), mixed shards, and runs every way a few times in turn. Everything is removed at the end. Needs
root, iproute2, rsync, an ssh client and sshd; where sshd is not installed its Debian package is fetched with apt-get
and unpacked into the working directory, not installed.

*ratio* is wall time ÷ (bytes ÷ link rate): 1.0 is one copy over one link. CPU is what the processes of a node used, the
kernel's part included as far as it is accounted to them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / ".collections")]

from ansible_collections.gb10.cluster.plugins.module_utils._weights import store as weights_store  # noqa: E402
from ansible_collections.gb10.cluster.plugins.module_utils._weights.server import Server  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils import _program  # noqa: E402
from benchmarks.weights_nodes import MAX_WORKERS, PORT, TOKEN, Bench, Child, address, call  # noqa: E402


@dataclass(frozen=True)
class Result:
    """One run of one way: CPU seconds per GB that a node received."""

    seconds: float
    head_cpu: float
    worker_cpu: float


def rsync_parallel(bench: Bench, workers: int) -> Result:
    """rsync over ssh from the head to every worker at once."""
    bench.place_on_head()
    daemons = [bench.start_sshd(node) for node in range(1, workers + 1)]
    began = time.monotonic()
    senders = [bench.rsync(node) for node in range(1, workers + 1)]
    codes = [sender.wait() for sender in senders]
    seconds = time.monotonic() - began
    if any(codes):
        raise SystemExit(f"rsync ended with {codes}: {(bench.folder / 'log-0').read_text()[-500:]}")
    for daemon in daemons:
        daemon.stop()
    size_gb = bench.manifest["bytes"] / 1e9
    return Result(
        seconds, sum(sender.cpu_s for sender in senders) / size_gb, statistics.mean(d.cpu_s for d in daemons) / size_gb
    )


def chain(bench: Bench, workers: int) -> Result:
    """The role's way, from a head whose copy is complete."""
    bench.place_on_head()
    began = time.monotonic()
    movers = [bench.start_mover(node, workers, complete=node == 0) for node in range(workers + 1)]
    bench.wait_complete(range(1, workers + 1))
    seconds = time.monotonic() - began
    return finish(bench, movers, seconds)


def finish(bench: Bench, movers: Sequence[Child], seconds: float) -> Result:
    """Stop the movers and return what they cost."""
    for mover in movers:
        mover.stop()
    size_gb = bench.manifest["bytes"] / 1e9
    return Result(seconds, movers[0].cpu_s / size_gb, statistics.mean(m.cpu_s for m in movers[1:]) / size_gb)


def pipeline(bench: Bench, workers: int) -> Result:
    """The role's way from the control node, over ssh to the head, through all workers."""
    daemon = bench.start_sshd(0)
    origin = bench.spawn(
        "c", sys.executable, str(Path(__file__).resolve()), "--origin", str(bench.folder / "origin.json")
    )
    began = time.monotonic()
    tunnel = bench.spawn(
        "c", *bench.ssh(), "-n", "-N", "-T", "-o", "ExitOnForwardFailure=yes",
        "-R", f"127.0.0.1:{PORT + 1}:127.0.0.1:{PORT + 1}", address(0),
    )  # fmt: skip
    movers = [bench.start_mover(node, workers, tunnels=1 if node == 0 else 0) for node in range(workers + 1)]
    bench.wait_complete(range(workers + 1))
    seconds = time.monotonic() - began
    for child in (tunnel, origin, daemon):
        child.stop()
    return finish(bench, movers, seconds)


def kill_and_resume(bench: Bench, workers: int, victim: int) -> tuple[float, float]:
    """Kill a node at a random instant, start it again; return (bytes moved ÷ bytes that were missing, seconds)."""
    bench.place_on_head()
    moments = random.Random(time.time_ns())
    movers = {node: bench.start_mover(node, workers, complete=node == 0) for node in range(workers + 1)}
    expected_s = bench.manifest["bytes"] * 8 / bench.rate_mbit / 1e6
    began = time.monotonic()
    time.sleep(1 + moments.random() * expected_s * 0.8)
    killed = range(workers + 1) if victim < 0 else [victim]
    for node in killed:
        movers[node].stop(signal.SIGKILL)
    have = {node: bench.arrived_bytes(node) for node in range(1, workers + 1)}
    before = {node: bench.received_bytes(node) for node in range(1, workers + 1)}
    time.sleep(1.5)
    for node in killed:
        movers[node] = bench.start_mover(node, workers, complete=node == 0)
    bench.wait_complete(range(1, workers + 1))
    seconds = time.monotonic() - began
    worst = 0.0
    for node in range(1, workers + 1):
        missing = bench.manifest["bytes"] - have[node]
        moved = bench.received_bytes(node) - before[node]
        worst = max(worst, moved / missing if missing > 50e6 else 0.0)
    for mover in movers.values():
        mover.stop()
    return worst, seconds


def serve_origin(path: str) -> None:
    """Be the control node's end, as the role's watcher is; until killed."""
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    manifest = given["manifest"]
    paths = [Path(given["folder"]) / file["path"] for file in manifest["files"]]
    store = weights_store.Store(manifest, paths, [True] * len(paths))
    store.load_hashes(Path(given["pieces"]).read_bytes(), given["pieces"])
    Server(store, TOKEN, ["127.0.0.1"]).listen("127.0.0.1", PORT + 1)
    signal.pause()


def find_sshd(folder: Path) -> tuple[str, str]:
    """Return (sshd, directory of its libraries); unpack the distribution's package where it is not installed."""
    installed = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else "")
    if installed:
        return installed, ""
    unpacked = folder / "sshd"
    unpacked.mkdir()
    done = subprocess.run(
        ["apt-get", "download", "openssh-server", "libwrap0"], cwd=unpacked, check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(
            f"There is no sshd here and none can be fetched; install openssh-server. {done.stderr.strip()}"
        )
    for package in unpacked.glob("*.deb"):
        call("dpkg", "-x", str(package), str(unpacked))
    library = next(unpacked.glob("**/libwrap.so.0"))
    return str(next(unpacked.glob("**/sbin/sshd"))), str(library.parent)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way, of which the median is reported")
    parser.add_argument("--gb", type=float, default=1.0, help="size of the model, GB")
    parser.add_argument("--rate", type=int, default=400, help="rate of the fabric, Mbit/s")
    parser.add_argument("--slow", type=int, default=200, help="rate of the control node's link, Mbit/s")
    parser.add_argument("--kills", type=int, default=3, help="kills of a worker, of the head and of all, each so often")
    parser.add_argument("--only", default="", help="run the ways whose name contains this")
    parser.add_argument("--dir", default="", help="working directory; by default one in memory if there is room")
    parser.add_argument("--origin", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.origin:
        serve_origin(args.origin)
        return
    if os.geteuid() != 0:
        raise SystemExit("Namespaces and shaping need root.")
    need = (MAX_WORKERS + 3) * args.gb * 1e9
    base = args.dir or ("/dev/shm" if shutil.disk_usage("/dev/shm").free > need else tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="gb10-bench-", dir=base))
    sshd, library_path = find_sshd(folder)
    archive = _program.build("weights")
    (folder / archive.name).write_bytes(archive.data)
    bench = Bench(folder, sshd, library_path, args.rate, args.slow, folder / archive.name)
    try:
        bench.make_network()
        bench.make_source(int(args.gb * 1e9))
        run(bench, args)
    finally:
        bench.stop_all()
        bench.remove_network()
        shutil.rmtree(folder, ignore_errors=True)


def run(bench: Bench, args: argparse.Namespace) -> None:
    """Run every way in turn, as often as asked, and print the medians."""
    size = bench.manifest["bytes"]
    ways: list[tuple[str, int | None, int | None, Callable[[], Result], int]] = [
        ("rsync over ssh, 3 workers in parallel", args.rate, None, lambda: rsync_parallel(bench, 3), 3),
        ("ours, 3 workers", args.rate, None, lambda: chain(bench, 3), 3),
        ("ours, 7 workers", args.rate, None, lambda: chain(bench, 7), 7),
        ("ours, control → head → 3 workers", args.rate, args.slow, lambda: pipeline(bench, 3), 3),
        ("rsync over ssh, 3 workers, unshaped", None, None, lambda: rsync_parallel(bench, 3), 3),
        ("ours, 3 workers, unshaped", None, None, lambda: chain(bench, 3), 3),
        ("rsync over ssh, 1 worker, unshaped", None, None, lambda: rsync_parallel(bench, 1), 1),
        ("ours, 1 worker, unshaped", None, None, lambda: chain(bench, 1), 1),
    ]
    chosen = [way for way in ways if args.only in way[0]]
    print(
        f"{size / 1e9:.2f} GB in {len(bench.manifest['files'])} files, pieces of "
        f"{bench.manifest['piece_bytes'] // 2**20} MiB, {os.cpu_count()} CPUs, in {bench.folder.parent}; fabric "
        f"{args.rate} Mbit/s, control {args.slow} Mbit/s; median of {args.repeat}",
        flush=True,
    )
    found: dict[str, list[Result]] = {way[0]: [] for way in chosen}
    for number in range(args.repeat):
        for name, fabric, control, way, workers in chosen:
            bench.clear()
            bench.shape(fabric, control)
            result = way()
            found[name].append(result)
            if number == 0:
                for node in range(1, workers + 1):
                    bench.assert_complete(node)
            print(f"  {number + 1} {name}: {result.seconds:.2f} s", file=sys.stderr, flush=True)
    for name, fabric, control, _way, _workers in chosen:
        seconds = statistics.median(result.seconds for result in found[name])
        rate = control or fabric
        shown = f"ratio {seconds * rate * 1e6 / 8 / size:.2f}" if rate else f"{size / 1e9 / seconds:.2f} GB/s to each"
        head = statistics.median(result.head_cpu for result in found[name])
        worker = statistics.median(result.worker_cpu for result in found[name])
        print(f"{name:42} {seconds:7.2f} s  {shown:18}  CPU s/GB: head {head:5.2f}, worker {worker:5.2f}", flush=True)
    for what, victim in (("a worker", 2), ("the head", 0), ("all of them", -1)):
        if not args.only or args.only in "killed":
            bench.shape(args.rate, None)
            runs = []
            for _number in range(args.kills):
                bench.clear()
                runs.append(kill_and_resume(bench, 3, victim))
                for node in (1, 2, 3):
                    bench.assert_complete(node)
            if runs:
                moved, seconds = max(each[0] for each in runs), max(each[1] for each in runs)
                print(
                    f"{f'killed: {what}, {args.kills} times':42} always complete; moved at most {moved:.2f} of what "
                    f"was missing; at most {seconds:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
