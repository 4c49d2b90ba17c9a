# SPDX-License-Identifier: Apache-2.0
"""The verbs of ``python -m lab``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import docker.errors
import requests

from lab import access, daemon, settings, status
from lab.cluster import Cluster
from lab.errors import LabError
from lab.locks import locked
from lab.plan import (
    DEFAULT_NAME,
    LABEL_LAB,
    LABEL_NODE,
    NETS,
    SHARED,
    Net,
    check_name,
    check_nodes,
    find_node,
)
from lab.progress import Progress
from lab.rootfs import Cache
from lab.shaping import Rates, decide_rates, parse_rate

ROOT = Path(__file__).resolve().parent.parent / ".lab"
DEFAULT_RATES = Rates(mgmt_bits_per_s=parse_rate("50mbit"), fabric_bits_per_s=parse_rate("10gbit"))
DEFAULT_SHM_GIB = 2


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.add_argument("--name", default=DEFAULT_NAME, help="which lab, when several run (default: lab)")
        return sub

    up = verb("up", "Start the lab, or bring it to the wanted state")
    up.add_argument("--nodes", type=int, help="1 to 8 (default: as many as there are, or 4)")
    up.add_argument("--fabric-rate", metavar="RATE", help="such as 10gbit; sets mgmt to 1/200")
    up.add_argument("--mgmt-rate", metavar="RATE", help="such as 50mbit; sets fabric to 200 times")
    up.add_argument("--unshaped", action="store_true", help="links as fast as the host carries")
    up.add_argument("--uplink", action="store_true", default=None, help="give nodes a way out")
    up.add_argument("--shm-gib", type=int, default=DEFAULT_SHM_GIB, help="size of /dev/shm")
    up.add_argument("--with-docker", action="store_true", help="nodes have Docker from the start, as DGX OS has")
    up.add_argument("--base-image", metavar="IMAGE", help="start from this image of a registry")
    up.add_argument(
        "--apt-sources", action="append", default=[], type=Path, metavar="FILE",
        help="read apt sources from here instead of /etc/apt",
    )  # fmt: skip
    up.add_argument("--quiet", action="store_true", help="no progress on standard error")

    down = verb("down", "Remove the lab's nodes, networks, volumes and files")
    down.add_argument("--force", action="store_true", help="also if another clone started it")
    down.add_argument("--cache", action="store_true", help="remove cached images and files too")

    state = verb("status", "Show the lab; exit code 1 unless all of it is as wanted")
    state.add_argument("--json", action="store_true", help="for programs")

    verb("inventory", "Print an Ansible inventory of the lab")

    shell = verb("shell", "Open a shell on a node, or run a command there, over SSH")
    shell.add_argument("--console", action="store_true", help="as root, without the network")
    shell.add_argument("node", metavar="NODE")
    shell.add_argument("command", nargs="*", metavar="COMMAND", help="after -- if it has options")

    for name, summary in (
        ("cut", "Pull a node's cables; its addresses stay, its carrier goes"),
        ("heal", "Plug a node's cables in again"),
    ):
        link = verb(name, summary)
        link.add_argument("node", metavar="NODE")
        link.add_argument("--net", choices=[*NETS, "both"], default="both", help="which cable (default: both)")

    for name, summary in (
        ("kill", "Power a node off the hard way"),
        ("boot", "Power a node on and wait until SSH answers"),
    ):
        verb(name, summary).add_argument("node", metavar="NODE")
    return top


def _up(options: argparse.Namespace, root: Path) -> int:
    progress = Progress(options.quiet)
    if options.nodes is not None:
        check_nodes(options.nodes)
    if options.shm_gib < 1:
        raise LabError(f"--shm-gib {options.shm_gib}: an engine needs 1 GiB of /dev/shm or more.")

    def rates(before: Rates | None) -> Rates:
        return decide_rates(options.fabric_rate, options.mgmt_rate, options.unshaped, before, DEFAULT_RATES)

    rates(None)  # a rate that cannot be read is refused before anything is made
    with locked(root / "cache" / "daemon.lock"):  # labs that start side by side on a new machine
        client = daemon.ensure(root, progress)
        daemon.ensure_control_programs(root, progress)
    cluster = Cluster(client, root, options.name, progress)
    with cluster.lock(), ThreadPoolExecutor(max_workers=1) as pool:
        count = cluster.admit(options.nodes, options.uplink)
        kept = settings.load(cluster.state)
        base_image = options.base_image or (kept.base_image if kept else None)
        with_docker = options.with_docker or bool(kept and kept.with_docker)
        cache = Cache(client, root / "cache", progress, base_image, options.apt_sources, with_docker)
        base: Future[Path] = pool.submit(cache.engine_base, claim=base_image is None or options.name == DEFAULT_NAME)
        nodes = cluster.up(count, rates, options.uplink, cache, options.shm_gib)
        progress.say(f"Lab {options.name!r} is up: {len(nodes)} node(s), {cluster.describe()}")
        base.result()
    print(status.table(options.name, cluster.reports()))
    return 0


def _down(options: argparse.Namespace, root: Path) -> int:
    client = daemon.installed(root, Progress())
    if client is None:
        print(f"There was no lab {options.name!r}: no Docker Engine is installed here.")
        return 0
    cluster = Cluster(client, root, options.name, Progress())
    with cluster.lock():
        removed = cluster.down(options.force)
    if options.cache:
        others = client.containers.list(all=True, filters={"label": [LABEL_LAB, LABEL_NODE]}, ignore_removed=True)
        if others:
            names = ", ".join(sorted({container.labels[LABEL_LAB] for container in others}))
            raise LabError(f"The caches stay: other labs use them ({names}).")
        for image in client.images.list(filters={"label": f"{LABEL_LAB}={SHARED}"}):
            client.images.remove(image.id, force=True)
            removed += image.tags
        shutil.rmtree(root / "cache", ignore_errors=True)
        removed.append(str(root / "cache"))
    print(f"Removed {', '.join(removed)}" if removed else f"There was no lab {options.name!r}.")
    return 0


def _status(options: argparse.Namespace, cluster: Cluster) -> int:
    reports = cluster.reports()
    if options.json:
        print(json.dumps(status.document(options.name, reports), indent=2))
    else:
        print(status.table(options.name, reports))
    return 1 if any(report.problems() for report in reports) else 0


def _shell(options: argparse.Namespace, cluster: Cluster) -> int:
    node = find_node(cluster.nodes(), options.node)
    if options.console:
        program = daemon.which("docker")
        if program is None:
            raise LabError("The console is opened by the docker command, which is not installed.")
        flags = ["-it"] if sys.stdin.isatty() and sys.stdout.isatty() else ["-i"]
        words = [program, "exec", *flags, node.container, *(options.command or ["/bin/bash", "-l"])]
    else:
        words = ["ssh", "-F", str(cluster.state / "ssh_config"), node.host, *options.command]
    sys.stdout.flush()
    os.execvp(words[0], words)


def _act(options: argparse.Namespace, cluster: Cluster) -> int:
    with cluster.lock():
        node = find_node(cluster.nodes(), options.node)
        if options.verb == "kill":
            cluster.kill(node)
            print(f"{node.host} has no power.")
        elif options.verb == "boot":
            cluster.boot(node)
            print(f"{node.host} is up.")
        else:
            nets: tuple[Net, ...] = NETS if options.net == "both" else (options.net,)
            cluster.set_links(node, nets, cut=options.verb == "cut")
            done = "cut" if options.verb == "cut" else "healed"
            print(f"{node.host}: {' and '.join(nets)} {done}.")
    return 0


def run(options: argparse.Namespace, root: Path) -> int:
    """Do what the command line says with the state directory ``root``; return the exit code."""
    check_name(options.name)
    if options.verb == "up":
        return _up(options, root)
    if options.verb == "down":
        return _down(options, root)
    cluster = Cluster(daemon.client_only(), root, options.name, Progress())
    if options.verb == "status":
        return _status(options, cluster)
    if options.verb == "shell":
        return _shell(options, cluster)
    if options.verb == "inventory":
        print(access.inventory(cluster.nodes(), cluster.state.resolve()), end="")
        return 0
    return _act(options, cluster)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; print a sentence on standard error and return 1 when it cannot be done."""
    options = parser().parse_args(arguments)
    try:
        return run(options, ROOT)
    except LabError as error:
        print(f"lab {options.verb}: {error}", file=sys.stderr)
        return 1
    except (docker.errors.DockerException, requests.RequestException) as error:
        print(f"lab {options.verb}: the host's Docker Engine says: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lab {options.verb}: interrupted; the same command picks up from here", file=sys.stderr)
        return 130
