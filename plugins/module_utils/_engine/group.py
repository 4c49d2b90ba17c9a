# SPDX-License-Identifier: Apache-2.0
"""The ranks of one engine live and die together: each keeps one connection to the head's over the fabric.

Nothing starts before every rank is there with the same environment; when one of them is gone, all others end too, and
systemd restarts them.  No control node takes part.  Connections come from members' addresses alone and are
authenticated (`_engine.tether`).  Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine import tether
from ansible_collections.gb10.cluster.plugins.module_utils._engine.life import REFUSED, Life, say
from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import shaped

#: What is read of a rank's hello.
HELLO: dict[str, Any] = {"rank": 0, "model": "", "env": {}}
HEARTBEAT_S = 2.0
REPORT_EVERY_S = 10.0
#: A connection without a heartbeat for this long is dead when its rank connects anew.
DEAD_S = 3 * HEARTBEAT_S


def environment_digests(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return name → a short digest of the value, so that ranks can compare and no value travels."""
    return {
        name: hashlib.sha256(environment[name].encode()).hexdigest()[:8] if name in environment else "unset"
        for name in names
    }


def environment_difference(head: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the variables that are not the same in two ranks' digests."""
    return sorted(name for name in {*head, *other} if head.get(name) != other.get(name))


class Group:
    """This rank's connections to the others: of the head to each, of each to the head."""

    def __init__(self, args: argparse.Namespace, life: Life) -> None:
        self.rank: int = args.rank
        self.model: str = args.model
        self.members: list[str] = args.members.split(",")
        self.port: int = args.tether_port
        self.silence_seconds: float = args.silence_seconds
        self.life = life
        self.env = environment_digests(sorted({*args.require_env, *args.same_env}), os.environ)
        self.key = self._read_key(args.tether_key)
        self.peers: dict[int, tether.Channel] = {}
        #: Rank → when its last message came, by the monotonic clock.
        self.heard_s: dict[int, float] = {}
        self.strangers: set[str] = set()
        self.envs: dict[int, Mapping[str, str]] = {}
        self.serving = threading.Event()
        self.full = threading.Event()
        self.lock = threading.RLock()
        life.notify = self.leave

    def _read_key(self, path: str) -> bytes:
        try:
            return tether.read_key(Path(path))
        except ValueError as error:
            self.life.end(REFUSED, f"start refused: {error}; run playbooks/serve.yml")
            raise

    def name(self, rank: int) -> str:
        """Return a rank as a person finds it: number, node and address."""
        node, _equals, address = self.members[rank].partition("=")
        return f"rank {rank}, {node} ({address})"

    def address(self, rank: int) -> str:
        return self.members[rank].partition("=")[2]

    def send(self, message: Mapping[str, Any]) -> None:
        """Send to all connected ranks; one that cannot be reached is found by the reader of its connection."""
        with self.lock:
            peers = list(self.peers.values())
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.send(message)

    def leave(self, why: str, requested: bool) -> None:
        """Report to the others that this rank ends, and why."""
        self.send({"end": why, "requested": requested})

    def beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            self.send({})

    def lost(self, rank: int, why: str, requested: bool = False) -> None:
        """End with a rank that is gone."""
        if requested:
            self.life.end(0, f"stopping with the others: {self.name(rank)}: {why}", requested=True)
        text = why if why.startswith("rank ") else f"{self.name(rank)} is gone: {why}"
        self.life.end(1, f"restarting with the others: {text}", why=text)

    def follow(self, rank: int, messages: Iterable[dict[str, Any]]) -> None:
        """Read a rank's heartbeats until there are no more, then end if the engine runs."""
        why, requested = "it closed the connection", False
        try:
            for message in messages:
                self.heard_s[rank] = time.monotonic()
                if message.get("serving"):
                    self.serving.set()
                if "end" in message:
                    why, requested = str(message["end"]), bool(message.get("requested"))
                    break
        except TimeoutError:
            why = f"no heartbeat for {self.silence_seconds:.0f} s"
        except (OSError, ValueError) as error:
            why = str(error)
        if self.full.is_set():
            self.lost(rank, why, requested)

    def gather(self) -> None:
        """Return when every rank is there."""
        threading.Thread(target=self.beat, daemon=True).start()
        if self.rank:
            self._join()
        else:
            self._collect()
        say(f"all {len(self.members)} ranks are here, with the same environment")

    # --- the head ------------------------------------------------------------------------------

    def _collect(self) -> None:
        try:
            server = socket.create_server((self.address(0), self.port))
        except OSError as error:
            self.life.end(REFUSED, f"start refused: {self.address(0)} port {self.port}, where the ranks meet: {error}")
            return
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()
        shown, shown_s = "", 0.0
        while not self.full.wait(0.2):
            with self.lock:
                away = [self.name(rank) for rank in range(1, len(self.members)) if rank not in self.peers]
            text = f"ranks gathered {len(self.members) - len(away)} of {len(self.members)}"
            text += f"; waiting for {'; '.join(away)}" if away else ""
            if text != shown or time.monotonic() - shown_s > REPORT_EVERY_S:
                shown, shown_s = text, time.monotonic()
                say(text)

    def _accept(self, server: socket.socket) -> None:
        members = {self.address(rank) for rank in range(len(self.members))}
        while True:
            peer, where = server.accept()
            if where[0] in members:
                threading.Thread(target=self._attend, args=(peer, where[0]), daemon=True).start()
            else:
                self._refuse(peer, where[0], "it is not the address of a member")

    def _refuse(self, peer: socket.socket, where: str, why: str) -> None:
        """Close a connection; the first one from an address is reported."""
        peer.close()
        if where not in self.strangers:
            self.strangers.add(where)
            say(f"connection from {where} refused: {why}")

    def _attend(self, peer: socket.socket, where: str) -> None:
        try:
            hello, channel = tether.accept(peer, self.key, self.silence_seconds)
        except (tether.UnprovenError, OSError) as error:
            self._refuse(peer, where, str(error))
            return
        hello = shaped(hello, HELLO)
        rank: int = hello["rank"]
        try:
            if hello["model"] != self.model or not 0 < rank < len(self.members):
                channel.send({"wait": f"{self.name(0)} runs {self.model}"})
            elif rank in self.peers and self._answers(rank):
                channel.send({"wait": f"{self.name(rank)} is connected already, and answers"})
            else:
                self._welcome(rank, channel, hello["env"])
                self.follow(rank, channel.messages())
        except (OSError, ValueError, TypeError):
            pass
        finally:
            with self.lock:
                counted = self.peers.get(rank) is channel
                if counted:
                    del self.peers[rank]
            channel.close()
            if counted and self.full.is_set():  # the last rank came between the end of this one and here
                self.lost(rank, "it closed the connection")

    def _answers(self, rank: int) -> bool:
        """Return whether a rank's present connection gives a heartbeat from now on; an ended one gives none."""
        asked_s = time.monotonic()
        while time.monotonic() - asked_s < DEAD_S and rank in self.peers:
            if self.heard_s.get(rank, 0.0) > asked_s:
                return True
            time.sleep(0.1)
        return False

    def _welcome(self, rank: int, channel: tether.Channel, env: Mapping[str, str]) -> None:
        if self.full.is_set():
            self.lost(rank, "it has restarted")
        with self.lock:
            before = self.peers.get(rank)
            self.peers[rank] = channel
            if before is not None:
                before.close()
            self.envs[rank] = env
            if len(self.peers) < len(self.members) - 1:
                return
            for other in self.peers:
                differing = environment_difference(self.env, self.envs[other])
                if differing:
                    sentence = (
                        f"start refused: the environment of {self.name(other)} is not that of the head: "
                        f"{', '.join(differing)} differ; every rank needs the same, run playbooks/serve.yml"
                    )
                    self.send({"refuse": sentence})
                    self.life.end(REFUSED, sentence)
            self.full.set()
            self.send({"go": True})

    # --- the others ----------------------------------------------------------------------------

    def _join(self) -> None:
        since_s, shown = time.monotonic(), ("", 0.0)
        hello = {"rank": self.rank, "model": self.model, "env": self.env}
        while True:
            problem = "it closed the connection; do both nodes have the same tether key? Run playbooks/serve.yml"
            try:
                # From this rank's own address, because the head takes connections of members alone.
                source = (self.address(self.rank), 0)
                peer = socket.create_connection((self.address(0), self.port), timeout=5, source_address=source)
                channel = tether.connect(peer, self.key, hello, self.silence_seconds)
                self.peers[0] = channel
                messages = channel.messages()
                for message in messages:
                    if "refuse" in message:
                        self.life.end(REFUSED, str(message["refuse"]))
                    if message.get("go"):
                        self.full.set()
                        threading.Thread(target=self.follow, args=(0, messages), daemon=True).start()
                        return
                    problem = str(message.get("wait") or problem)
                    if shown[0] != "here":
                        shown = ("here", time.monotonic())
                        say(f"waiting for rank 0 at {self.address(0)}:{self.port}: it waits for others")
                channel.close()
            except (tether.UnprovenError, OSError, ValueError) as error:
                problem = str(error)
            if shown[0] != problem or time.monotonic() - shown[1] > REPORT_EVERY_S:
                shown = (problem, time.monotonic())
                waited = time.monotonic() - since_s
                say(f"waiting for rank 0 at {self.address(0)}:{self.port} since {waited:.0f} s ({problem})")
            self.peers.pop(0, None)
            time.sleep(1)
