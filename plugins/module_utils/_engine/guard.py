# SPDX-License-Identifier: Apache-2.0
"""Wait for the decision on a swap of the served model, and do on this node what was decided.

Runs as gb10-swap.service on each node that takes part, from before the previous model is stopped.  The head's guard
rolls back when the control node has not committed within the time that a start may take: a start that makes progress,
on any rank and as the probe sees it, takes as long as it needs; one that is ready, or restarts too often, makes none.
A node that was restarted meanwhile ends the swap too.  The guards of the other nodes ask the head's over the fabric,
authenticated as the ranks are (`_engine.tether`), and wait as long as it does not answer.  Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine import swap as swaps
from ansible_collections.gb10.cluster.plugins.module_utils._engine import tether
from ansible_collections.gb10.cluster.plugins.module_utils._engine.life import say
from ansible_collections.gb10.cluster.plugins.module_utils._engine.units import EngineUnits, UnitError
from ansible_collections.gb10.cluster.plugins.module_utils._node import command
from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import LogLimits, RankNames, RankReader
from ansible_collections.gb10.cluster.plugins.module_utils._probe.state import progress_token

MAX_POLL_SECONDS = 10.0
#: A stop waits for the container, which may be given a minute or more.
COMMAND_SECONDS = 600.0
ANSWER_SECONDS = 10.0
MAX_CONNECTIONS = 16
#: How often a node reports that it is done to a head that does not answer: the swap may have been ended there.
MAX_REPORTS = 30
#: What a rank reports that makes no progress any more: its engine is ready, or was restarted too often.
READY, RESTARTED = "ready", "restarted too often"

#: What this node's rank shows of its progress; see `progress_of`.
Look = Callable[[Mapping[str, Any]], str]


def run(words: Sequence[str]) -> tuple[int, str, str]:
    """Run a command of systemd or Docker, which may take its time."""
    return command.run(words, COMMAND_SECONDS)


def progress_of(report: Mapping[str, Any], restarts_allowed: int) -> str:
    """Return a token that is another one whenever a rank has moved on.

    :param report: as `RankReader.report` gives it.
    :returns: `READY` or `RESTARTED` for a rank that makes no progress any more; else a digest.
    """
    if report.get("log", {}).get("phase") == "ready":
        return READY
    if int(report.get("unit", {}).get("restarts", 0)) > restarts_allowed:
        return RESTARTED
    return hashlib.sha256(repr(progress_token([report], None)).encode()).hexdigest()[:16]


def look(swap: Mapping[str, Any]) -> str:
    """Return the progress of this node's rank of the new model; empty where it has none."""
    unit = swaps.unit_of(swap["after"], swap["node"])
    if not unit:
        return ""
    names = RankNames(unit=unit, container=unit.removesuffix(".service"), node=swap["node"])
    try:
        report = RankReader(command.run, names, LogLimits(shown_lines=0)).report()
    except Exception as error:  # noqa: BLE001 - what cannot be read makes no progress, and the guard goes on
        say(f"the state of {unit} cannot be read: {type(error).__name__}: {error}")
        return ""
    return progress_of(report, int(swap["restarts_allowed"]))


def stalled(tokens: Mapping[str, str], head: str) -> bool:
    """Return whether no token counts as progress: the head is ready, or a rank was restarted too often."""
    return tokens.get(head) == READY or RESTARTED in tokens.values()


class Guard:
    """The guard of one node.

    :param swap: the swap of this node.
    :param look: shows the progress of this node's rank.
    :param clock: seconds that do not jump.
    """

    def __init__(self, swap: swaps.Swap, look: Look = look, clock: Callable[[], float] = time.monotonic) -> None:
        self.swap = swap
        self.look = look
        self.clock = clock
        self.restarted = not swap.armed.exists()
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        #: Of the other nodes, as they have reported: progress, whether restarted, whether done.
        self.progress: dict[str, str] = {}
        self.restarts: set[str] = set()
        self.done: set[str] = set()
        self.reports = 0
        self.seen: tuple[str, ...] = ()
        self.seen_s = clock()
        self.server: socket.socket | None = None

    def poll_seconds(self, described: Mapping[str, Any]) -> float:
        return min(MAX_POLL_SECONDS, max(0.2, float(described["stall_seconds"]) / 6))

    def step(self) -> bool:
        """Look once and do what is due; return whether this node is done with the swap."""
        described = self.swap.read()
        if not described:
            return True
        if described["node"] == described["head"]:
            return self._lead(described)
        return self._follow(described)

    # --- the head ------------------------------------------------------------------------------

    def _lead(self, described: Mapping[str, Any]) -> bool:
        self._listen(described)
        why = self.verdict(described) if described["state"] == swaps.PENDING else ""
        with self.swap.locked():
            described = self.swap.read()
            if not described:
                return True
            if described["state"] == swaps.PENDING:
                if not why:
                    return False
                described = self.swap.decide(described, swaps.ROLLED_BACK, why, by_nodes=True)
                say(f"rolling the swap to {described['after'].get('model')} back: {why}")
            self._apply(described)
            with self.lock:
                done = self.done | set(described.get("done", []))
            if done != set(described.get("done", [])):
                # Kept for a guard that is restarted: a node reports once.
                self.swap.write({**self.swap.read(), "done": sorted(done)})
            if not set(described["peers"]) <= done:
                return False
            self.swap.remove()
        return True

    def verdict(self, described: Mapping[str, Any]) -> str:
        """Return why the head rolls a pending swap back now; empty as long as it waits."""
        with self.lock:
            restarted = sorted(self.restarts | ({described["head"]} if self.restarted else set()))
            tokens = {**self.progress, described["head"]: ""}
        if restarted:
            return f"{', '.join(restarted)} was restarted before the control node had committed it"
        tokens[described["head"]] = self.look(described)
        seen = ("stalled",) if stalled(tokens, described["head"]) else tuple(tokens[name] for name in sorted(tokens))
        now_s = self.clock()
        if seen != self.seen:
            self.seen, self.seen_s = seen, now_s
        if now_s - self.seen_s < float(described["stall_seconds"]):
            return ""
        since = "its engine was ready" if tokens[described["head"]] == READY else "the last progress of its start"
        return f"the control node did not commit it within {described['stall_seconds']:.0f} s after {since}"

    def _listen(self, described: Mapping[str, Any]) -> None:
        if self.server is not None or not described["peers"]:
            return
        try:
            server = socket.create_server((described["head_address"], int(described["port"])))
        except OSError as error:
            say(f"{described['head_address']} port {described['port']}, where the other nodes ask: {error}")
            return
        self.server = server
        threading.Thread(target=self._serve, args=(server,), daemon=True).start()

    def _serve(self, server: socket.socket) -> None:
        while True:
            try:
                peer, _where = server.accept()
            except OSError:
                return
            if self.slots.acquire(blocking=False):
                threading.Thread(target=self._answer, args=(peer,), daemon=True).start()
            else:
                peer.close()

    def _answer(self, peer: socket.socket) -> None:
        """Answer one question; whoever has not the key, or asks about another swap, learns nothing."""
        with peer:
            try:
                described = self.swap.read()
                hello, channel = tether.accept(peer, tether.read_key(Path(described["key"])), ANSWER_SECONDS)
                node = str(hello.get("node", ""))
                if hello.get("swap") != described["id"] or node not in described["peers"]:
                    return
                with self.lock:
                    self.progress[node] = str(hello.get("progress", ""))
                    if hello.get("restarted"):
                        self.restarts.add(node)
                    if hello.get("done"):
                        self.done.add(node)
                channel.send({name: described[name] for name in ("state", "why", "by_nodes") if name in described})
            except (tether.UnprovenError, OSError, ValueError, KeyError, TypeError):
                return
            finally:
                self.slots.release()

    # --- the others ----------------------------------------------------------------------------

    def _follow(self, described: Mapping[str, Any]) -> bool:
        if described["state"] == swaps.PENDING:
            answer = self.ask(described, {"progress": self.look(described), "restarted": self.restarted})
            state = str(answer.get("state", ""))
            if state not in (swaps.COMMITTED, swaps.ROLLED_BACK):
                return False
            with self.swap.locked():
                current = self.swap.read()
                if current.get("id") != described["id"] or current["state"] != swaps.PENDING:
                    return not current
                why, by_nodes = str(answer.get("why", "")), bool(answer.get("by_nodes"))
                described = self.swap.decide(current, state, why, by_nodes=by_nodes)
            say(f"{described['head']} has decided on the swap to {described['after'].get('model')}: {state}")
        with self.swap.locked():
            described = self.swap.read()
            if not described:
                return True
            self._apply(described)
        self.reports += 1
        if not self.ask(described, {"done": True}) and self.reports < MAX_REPORTS:
            return False
        with self.swap.locked():
            if self.swap.read().get("id") == described["id"]:
                self.swap.remove()
        return True

    def ask(self, described: Mapping[str, Any], question: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the head's guard answers; empty when it does not."""
        try:
            key = tether.read_key(Path(described["key"]))
            source = (described["address"], 0) if described["address"] else None
            with socket.create_connection(
                (described["head_address"], int(described["port"])), timeout=ANSWER_SECONDS, source_address=source
            ) as peer:
                hello = {"swap": described["id"], "node": described["node"], **question}
                channel = tether.connect(peer, key, hello, ANSWER_SECONDS)
                return next(iter(channel.messages()), {})
        except (tether.UnprovenError, OSError, ValueError):
            return {}

    def _apply(self, described: Mapping[str, Any]) -> None:
        if described.get("applied"):
            return
        stopped, started = self.swap.apply(described)
        for what, units in (("stopped", stopped), ("started", started)):
            if units:
                say(f"{what} {', '.join(units)}")
        self.swap.write({**described, "applied": True})

    def run(self) -> None:
        while True:
            try:
                if self.step():
                    return
            except (UnitError, OSError) as error:
                say(f"not done yet: {error}")
            time.sleep(self.poll_seconds(self.swap.read() or {"stall_seconds": 0}))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("swap", type=Path, help="description of the swap, JSON, written by the module engine_swap")
    path = parser.parse_args(argv).swap
    Guard(swaps.Swap(EngineUnits(run), run, state_dir=path.parent)).run()
    return 0
