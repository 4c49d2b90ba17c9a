# SPDX-License-Identifier: Apache-2.0
"""Where the time of a playbook run goes: by play, by task and by host, in seconds and in ping rounds of the same run.

    make bench-converge                                        # site.yml on a converged lab
    make bench-converge ARGS='--playbook playbooks/status.yml'
    make bench-converge ARGS='--playbook swap-model.yml -e model=tiny-nemotronh --may-change'
    make bench-converge ARGS='--stand-in 1 --stand-in 4 --stand-in 8'

With --stand-in a lab of that many nodes is brought up, in which the stand-in engine serves (lab/standin): its first
site.yml, one that changes nothing, status.yml, and a swap up to the engines' own start are measured there.

A ping round is one ``ansible -m ping`` over all nodes, measured before and after each run: it contains what every run
pays on this machine at this time (start of Ansible, SSH, one module), so that figures of a busy and of a quiet machine
can be compared. A task's seconds are those from its start to the next task's start, so they include what the control
node does in between; "on hosts" is the longest time that one host reported for it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

from benchmarks import stand_in, swap  # noqa: E402
from benchmarks.swap import BenchError, Site  # noqa: E402
from lab.runs import RunResult, run_playbook  # noqa: E402

PING_ROUNDS = 3
LONGEST = 15


@dataclass
class Timeline:
    """When each play and task of a run began. `clock` gives seconds."""

    clock: Callable[[], float]
    starts: list[tuple[float, str, str]] = field(default_factory=list)
    play: str = ""

    def feed(self, event: dict[str, Any]) -> None:
        """Take in one event of ansible-runner."""
        kind, data = str(event.get("event")), event.get("event_data") or {}
        if kind == "playbook_on_play_start":
            self.play = str(data.get("name") or "")
            self.starts.append((self.clock(), self.play, ""))
        elif kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            role = f"{data['role']} : " if data.get("role") else ""
            self.starts.append((self.clock(), self.play, role + str(data.get("task") or data.get("name") or "")))
        elif kind == "playbook_on_stats":
            self.starts.append((self.clock(), "", ""))

    def spans(self) -> list[tuple[str, str, float]]:
        """Return (play, task, seconds until the next began) in order; the task is empty where a play begins."""
        return [
            (play, task, after[0] - at) for (at, play, task), after in zip(self.starts, self.starts[1:], strict=False)
        ]


def figures(result: RunResult, timeline: Timeline, ping_seconds: float) -> dict[str, Any]:
    """Return what one run gave, in seconds and ping rounds."""
    plays: dict[str, list[float]] = defaultdict(list)
    started: Counter[str] = Counter()
    tasks: list[dict[str, Any]] = []
    on_hosts: dict[str, float] = defaultdict(float)
    by_host: dict[str, float] = defaultdict(float)
    for event in result.events:
        on_hosts[event.title] = max(on_hosts[event.title], event.seconds)
        by_host[event.host] += event.seconds
    for play, task, seconds in timeline.spans():
        plays[play].append(seconds)
        if task:
            started[play] += 1
            tasks.append({"task": task, "seconds": round(seconds, 2), "on_hosts": round(on_hosts[task], 2)})
    return {
        "seconds": round(result.seconds, 1),
        "ping_round_seconds": round(ping_seconds, 2),
        "ping_rounds": round(result.seconds / ping_seconds, 1),
        "tasks": len(tasks),
        "changed": result.changed_tasks(),
        "by_play": {play: [started[play], round(sum(each), 1)] for play, each in plays.items()},
        "by_host": {host: round(seconds, 1) for host, seconds in sorted(by_host.items())},
        "longest": sorted(tasks, key=lambda task: -float(task["seconds"]))[:LONGEST],
    }


def render(name: str, found: dict[str, Any]) -> str:
    """Return the figures of one run as Markdown tables."""
    ping = found["ping_round_seconds"]
    lines = [
        f"### {name}",
        "",
        f"{found['seconds']:.1f} s, {found['tasks']} tasks, {found['ping_rounds']} ping rounds of {ping} s.",
        "",
        "| play | tasks | seconds | ping rounds |",
        "|---|--:|--:|--:|",
        *(f"| {play} | {n} | {s:.1f} | {s / ping:.1f} |" for play, (n, s) in found["by_play"].items()),
        "",
        "| task | seconds | on hosts |",
        "|---|--:|--:|",
        *(f"| {each['task']} | {each['seconds']:.1f} | {each['on_hosts']:.1f} |" for each in found["longest"]),
        "",
        "| host | seconds in its tasks |",
        "|---|--:|",
        *(f"| {host} | {seconds:.1f} |" for host, seconds in found["by_host"].items()),
    ]
    return "\n".join(lines)


def measure(site: Site, inventories: Sequence[str], playbook: str, extra: dict[str, str]) -> dict[str, Any]:
    """Run a playbook once between ping rounds and return its figures.

    :raises BenchError: when it fails.
    """
    pings = [site.ping() for _round in range(PING_ROUNDS)]
    timeline = Timeline(time.monotonic)
    result = run_playbook(playbook, list(inventories), extra, quiet=True, observer=lambda e: timeline.feed(dict(e)))
    if result.rc:
        raise BenchError(f"{playbook} failed: {result.describe()}")
    pings += [site.ping() for _round in range(PING_ROUNDS)]
    return figures(result, timeline, statistics.median(pings))


def on_stand_in(nodes: int) -> dict[str, dict[str, Any]]:
    """Return the figures of the four runs on a lab of this many nodes with the stand-in engine; print each at once.

    :raises BenchError: when a run fails, or one that should change nothing changes something.
    """
    inventory = str(stand_in.bring_up(nodes))
    site = Site([inventory], "gx10")
    found: dict[str, dict[str, Any]] = {}
    for name, playbook in (
        ("fresh", "site.yml"),
        ("unchanged", "site.yml"),
        ("status", "playbooks/status.yml"),
    ):
        found[name] = measure(site, [inventory], playbook, {})
        print(render(f"{nodes} nodes, {name}: {playbook}", found[name]), end="\n\n", flush=True)
        if name != "fresh" and found[name]["changed"]:
            raise BenchError(f"{playbook} changed {', '.join(found[name]['changed'])} in a run after the first")
    swapped = swap.measure(
        site, "playbooks/status.yml", f"swap-model.yml -e model={stand_in.SECOND}", "swap-model.yml -e model=inventory"
    )
    seconds = swapped["ours_until_engine_starts_s"]
    found["swap"] = {
        "seconds": round(seconds, 1),
        "ping_round_seconds": round(swapped["ping_round_s"], 2),
        "ping_rounds": round(seconds / swapped["ping_round_s"], 1),
    }
    return found


def render_sizes(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Return the runs of every size as one Markdown table."""
    rows = [
        f"| {nodes} | {name} | {run['seconds']:.1f} | {run.get('tasks', '')} | {run['ping_round_seconds']} "
        f"| {run['ping_rounds']} |"
        for nodes, runs in found.items()
        for name, run in runs.items()
    ]
    head = ["| nodes | run | seconds | tasks | seconds of a ping round | ping rounds |", "|--:|---|--:|--:|--:|--:|"]
    return "\n".join([*head, *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and write the figures to a file if one is named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--inventory", action="append", help="default: inventories/lab")
    parser.add_argument("--group", default="gx10", help="the nodes (default: gx10)")
    parser.add_argument("--playbook", action="append", help="one or more, in this order (default: site.yml)")
    parser.add_argument(
        "-e", dest="extra", action="append", default=[], metavar="KEY=VALUE", help="a variable of all runs"
    )
    parser.add_argument("--may-change", action="store_true", help="accept runs that change something")
    parser.add_argument(
        "--stand-in", action="append", type=int, metavar="NODES", help="measure on labs of these sizes instead"
    )
    parser.add_argument("--keep", action="store_true", help="leave the labs of --stand-in running")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    inventories = args.inventory or ["inventories/lab"]
    extra = dict(word.split("=", 1) for word in args.extra)
    found: dict[str, Any] = {}
    sizes: dict[int, dict[str, dict[str, Any]]] = {}
    try:
        for nodes in args.stand_in or []:
            sizes[nodes] = on_stand_in(nodes)
            if not args.keep:
                stand_in.take_down(nodes)
        if sizes:
            print(render_sizes(sizes))
        for playbook in args.playbook or ([] if sizes else ["site.yml"]):
            found[playbook] = measure(Site(inventories, args.group), inventories, playbook, extra)
            print(render(playbook, found[playbook]), end="\n\n", flush=True)
            if found[playbook]["changed"] and not args.may_change:
                changed = ", ".join(found[playbook]["changed"])
                raise BenchError(f"{playbook} changed {changed}: this site was not converged; see --may-change")
    except BenchError as error:
        print(f"bench-converge: {error}", file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps(sizes or found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
