# SPDX-License-Identifier: Apache-2.0
"""What a swap costs beside the engine's own start, and what a run costs that changes nothing.

    make bench-swap ARGS='-i inventories/lab --to tiny-nemotronh'

Three figures of one run, the first of them the yardstick of the others:

- one round of ``ansible -m ping`` over all nodes, the median of several;
- ``site.yml`` on a site that is as wanted already, which must change nothing, in seconds and in ping rounds;
- a swap: from the command to the moment when every rank becomes its engine (all that is this project's), and from
  there to the end of the run (the engine's start and its proof).

Afterwards the model of before is served again.  ``--converge``, ``--swap`` and ``--back`` take other playbooks with
their options, so that the same can be measured on another site.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
ANSIBLE = Path(sys.executable).parent
PING_ROUNDS = 5
#: What a rank's container prints when it becomes its engine.
ENGINE_STARTS = "gb10: exec "


class BenchError(Exception):
    """A measurement that would mean nothing; the text says why."""


def run(words: Sequence[str]) -> tuple[float, str]:
    """Run a command; return its seconds and what it printed.

    :raises BenchError: when it fails, with the end of its output.
    """
    start = time.monotonic()
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode:
        raise BenchError(f"`{shlex.join(words)}` ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return seconds, done.stdout


def changed_hosts(output: str) -> list[str]:
    """Return the hosts whose line of the recap shows a change."""
    return re.findall(r"^(\S+)\s+:.*\bchanged=[1-9]", output, re.MULTILINE)


def last_start(journal: str) -> float | None:
    """Return when the newest engine became itself, in seconds since the epoch, from ``journalctl -o short-unix``."""
    # The message begins with it: the journal also holds the command that asks for it.
    times = re.findall(rf"^(\d+\.\d+) \S+ \S+\[\d+\]: {ENGINE_STARTS}", journal, re.MULTILINE)
    return max(map(float, times), default=None)


def node_clocks(sent: float, received: float, said: dict[str, float]) -> dict[str, float]:
    """Return node → how far its clock is ahead of this machine's, in seconds; good to half of the round trip."""
    return {node: clock - (sent + received) / 2 for node, clock in said.items()}


def by_node(output: str) -> dict[str, str]:
    """Return node → what it printed, from ``ansible --one-line``."""
    found = re.findall(r"^(\S+) \| \w+ \| rc=\d+ \| \(stdout\) ?(.*)$", output, re.MULTILINE)
    return {node: text.split(" (stderr)")[0].replace("\\n", "\n") for node, text in found}


class Site:
    """A site and how its nodes are asked."""

    def __init__(self, inventories: Sequence[str], group: str) -> None:
        self.words = [word for each in inventories for word in ("-i", each)]
        self.group = group

    def playbook(self, command: str) -> tuple[float, str]:
        """Run a playbook with its options."""
        return run([str(ANSIBLE / "ansible-playbook"), *self.words, *shlex.split(command)])

    def shell(self, script: str) -> dict[str, str]:
        """Run a script as root on every node."""
        command = [
            str(ANSIBLE / "ansible"),
            *self.words,
            self.group,
            "--one-line",
            "--become",
            "-m",
            "shell",
            "-a",
            script,
        ]
        return by_node(run(command)[1])

    def ping(self) -> float:
        """Return the seconds of one round over all nodes."""
        return run([str(ANSIBLE / "ansible"), *self.words, self.group, "-m", "ping"])[0]

    def clocks(self) -> dict[str, float]:
        """Return how far each node's clock is ahead."""
        sent = time.time()
        said = {node: float(text) for node, text in self.shell("date +%s.%N").items()}
        return node_clocks(sent, time.time(), said)


def measure(site: Site, converge: str, swap: str, back: str) -> dict[str, Any]:
    """Return the figures of one run, in seconds.

    :raises BenchError: when a run fails, or one that should change nothing changes something.
    """
    ping = statistics.median(site.ping() for _round in range(PING_ROUNDS))
    unchanged, output = site.playbook(converge)
    if changed_hosts(output):
        raise BenchError(f"`{converge}` changed {', '.join(changed_hosts(output))}: this site was not converged")
    ahead = site.clocks()
    start, since = time.time(), time.monotonic()
    try:
        site.playbook(swap)
        total = time.monotonic() - since
        since_s = int(start + min(ahead.values())) - 1
        script = f"journalctl --since @{since_s} --output=short-unix | grep '{ENGINE_STARTS}' || true"
        starts = {node: last_start(text) for node, text in site.shell(script).items()}
    finally:
        site.playbook(back)
    # A node that holds no rank of this model has started none.
    begun = max((each - ahead[node] for node, each in starts.items() if each is not None), default=0.0)
    if not begun:
        raise BenchError("no rank's log shows that it became its engine: the swap started none")
    if not start <= begun <= start + total:
        raise BenchError("the engines started before the swap or after it: the nodes' clocks jump")
    return {
        "ping_round_s": ping,
        "unchanged_s": unchanged,
        "unchanged_in_ping_rounds": unchanged / ping,
        "ours_until_engine_starts_s": begun - start,
        "engine_start_and_proof_s": total - (begun - start),
        "swap_s": total,
    }


def render(figures: dict[str, Any]) -> str:
    """Return the figures for a person."""
    return "\n".join(
        (
            f"one ping round (median of {PING_ROUNDS})         {figures['ping_round_s']:8.1f} s",
            f"a run that changes nothing             {figures['unchanged_s']:8.1f} s"
            f"   {figures['unchanged_in_ping_rounds']:.1f} ping rounds",
            f"swap: command until the engines start  {figures['ours_until_engine_starts_s']:8.1f} s",
            f"swap: engine start and its proof       {figures['engine_start_and_proof_s']:8.1f} s",
            f"swap: all                              {figures['swap_s']:8.1f} s",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show, and write the figures to a file if one is named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--inventory", action="append", help="default: inventories/lab")
    parser.add_argument("--group", default="gx10", help="the nodes (default: gx10)")
    parser.add_argument("--to", help="the model to swap to and back from")
    parser.add_argument("--converge", default="site.yml", help="the run that changes nothing (default: site.yml)")
    parser.add_argument("--swap", help="default: swap-model.yml -e model=<to>")
    parser.add_argument(
        "--back",
        default="swap-model.yml -e model=inventory",
        help="the run that undoes it (default: swap-model.yml -e model=inventory)",
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    if not args.swap and not args.to:
        parser.error("name the model to swap to with --to, or the playbook with --swap")
    site = Site(args.inventory or ["inventories/lab"], args.group)
    try:
        figures = measure(site, args.converge, args.swap or f"swap-model.yml -e model={args.to}", args.back)
    except BenchError as error:
        print(f"bench-swap: {error}", file=sys.stderr)
        return 1
    print(render(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
