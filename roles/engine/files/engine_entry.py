# SPDX-License-Identifier: Apache-2.0
"""First process of an engine container: gathers the ranks, starts Ray where it is wanted, runs vLLM and watches.

The ranks of one engine live and die together.  Each container's first process keeps one connection to that of the head
over the fabric.  Nothing starts before every rank is there with the same environment; when one of them is gone, all
others end too, and systemd starts them anew.  No control node takes part.

While the engine starts, MemAvailable of the node is watched: below the floor the container ends at once, because a host
without memory accepts no commands any more.

It runs inside the image, so it uses the standard library alone.  What it prints is read by the probe.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

REFUSED = 78
"""Exit status of a start that must not happen; as in engine_prestart.py."""
HEARTBEAT_S = 2.0
TELL_EVERY_S = 10.0
MEMORY_POLL_S = 0.25
HEALTH_POLL_S = 2.0
MEMINFO = Path("/proc/meminfo")


def say(text: str) -> None:
    """Print one line for the log, at once."""
    print(f"gb10: {text}", flush=True)


def missing_environment(required: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the required variables that are unset or empty."""
    return [name for name in required if not environment.get(name)]


def environment_digests(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return name → a short digest of the value, so that ranks can compare and no value travels."""
    return {
        name: hashlib.sha256(environment[name].encode()).hexdigest()[:8] if name in environment else "unset"
        for name in names
    }


def environment_difference(head: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the variables that are not the same in two ranks' digests."""
    return sorted(name for name in {*head, *other} if head.get(name) != other.get(name))


def available_gib(meminfo: str) -> float:
    """Return MemAvailable in GiB from the text of /proc/meminfo; infinite when it is not there."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(match.group(1)) / 2**20 if match else float("inf")


class Life:
    """How this container ends: once, with one sentence in the log, and with word to the other ranks."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        #: Whether the engine is being started: it may run already, and only `run` can end it properly.
        self.starting = False
        self.stopping = threading.Event()
        self.tell: Callable[[str, bool], None] = lambda _why, _asked: None
        self._once = threading.Lock()

    def end(self, status: int, sentence: str, *, why: str = "", asked: bool = False) -> None:
        """Print the sentence, tell the others why, and end; whatever else runs in the container ends with it."""
        if not self._once.acquire(blocking=False):
            threading.Event().wait()
        say(sentence)
        self.tell(why or sentence, asked)
        if self.child is not None:
            with contextlib.suppress(OSError):
                self.child.kill()
        sys.stdout.flush()
        os._exit(status)

    def heed_stops(self) -> None:
        """Take the signals that ask for an end; in the main thread alone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.asked_to_stop)

    def asked_to_stop(self, _number: int, _frame: object) -> None:
        """Pass a stop on to the engine, which may take its time."""
        self.stopping.set()
        if self.child is not None:
            with contextlib.suppress(OSError):
                self.child.terminate()
        elif not self.starting:
            threading.Thread(target=self.end, args=(0, "stopped before the engine ran"), kwargs={"asked": True}).start()

    def run(self, command: Sequence[str]) -> None:
        """Run the engine until it ends, and end as it did; one that ends unasked has failed, whatever its status."""
        say(f"exec {command[0]}")
        self.starting = True
        self.child = subprocess.Popen(command)
        if self.stopping.is_set():
            self.child.terminate()
        code = self.child.wait()
        if self.stopping.is_set():
            self.end(0, f"stopped on request, the engine's status was {code}", why="it was stopped", asked=True)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        self.end(128 - code if code < 0 else code or 1, f"the engine {how} unasked", why=f"its engine {how}")


def lines_of(peer: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield the messages of a peer until it closes; a silence longer than the socket's limit raises TimeoutError."""
    rest = b""
    while True:
        part = peer.recv(4096)
        if not part:
            return
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            message = json.loads(line)
            if isinstance(message, dict):
                yield message
        if len(rest) > 2**20:
            raise ValueError("a message without an end")


class Group:
    """This rank's connections to the others: of the head to each, of each to the head."""

    def __init__(self, args: argparse.Namespace, life: Life) -> None:
        self.rank: int = args.rank
        self.model: str = args.model
        self.members: list[str] = args.members.split(",")
        self.port: int = args.tether_port
        self.silence_s: float = args.silence_seconds
        self.life = life
        self.env = environment_digests(sorted({*args.require_env, *args.same_env}), os.environ)
        self.peers: dict[int, socket.socket] = {}
        self.envs: dict[int, Mapping[str, str]] = {}
        self.serving = threading.Event()
        self.full = threading.Event()
        self.lock = threading.RLock()
        life.tell = self.leave

    def name(self, rank: int) -> str:
        """Return a rank as a person finds it: number, node and address."""
        node, _equals, address = self.members[rank].partition("=")
        return f"rank {rank}, {node} ({address})"

    def address(self, rank: int) -> str:
        """Return a rank's address on the fabric."""
        return self.members[rank].partition("=")[2]

    def send(self, message: Mapping[str, Any]) -> None:
        """Send to all that are connected; who cannot be reached is found by the reader of its connection."""
        data = json.dumps(message).encode() + b"\n"
        with self.lock:
            peers = list(self.peers.values())
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(data)

    def leave(self, why: str, asked: bool) -> None:
        """Tell the others that this rank ends, and why."""
        self.send({"end": why, "asked": asked})

    def beat(self) -> None:
        """Give a sign of life for ever."""
        while True:
            time.sleep(HEARTBEAT_S)
            self.send({})

    def lost(self, rank: int, why: str, asked: bool = False) -> None:
        """End with a rank that is gone."""
        if asked:
            self.life.end(0, f"stopping with the others: {self.name(rank)}: {why}", asked=True)
        text = why if why.startswith("rank ") else f"{self.name(rank)} is gone: {why}"
        self.life.end(1, f"restarting with the others: {text}", why=text)

    def follow(self, rank: int, messages: Iterator[dict[str, Any]]) -> None:
        """Read a rank's signs of life until there are no more, then end if the engine runs."""
        why, asked = "it closed the connection", False
        try:
            for message in messages:
                if message.get("serving"):
                    self.serving.set()
                if "end" in message:
                    why, asked = str(message["end"]), bool(message.get("asked"))
                    break
        except TimeoutError:
            why = f"no sign of life for {self.silence_s:.0f} s"
        except (OSError, ValueError) as error:
            why = str(error)
        if self.full.is_set():
            self.lost(rank, why, asked)

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
        told, told_s = "", 0.0
        while not self.full.wait(0.2):
            with self.lock:
                away = [self.name(rank) for rank in range(1, len(self.members)) if rank not in self.peers]
            text = f"ranks gathered {len(self.members) - len(away)} of {len(self.members)}"
            text += f"; waiting for {'; '.join(away)}" if away else ""
            if text != told or time.monotonic() - told_s > TELL_EVERY_S:
                told, told_s = text, time.monotonic()
                say(text)

    def _accept(self, server: socket.socket) -> None:
        while True:
            peer, _where = server.accept()
            threading.Thread(target=self._attend, args=(peer,), daemon=True).start()

    def _attend(self, peer: socket.socket) -> None:
        peer.settimeout(self.silence_s)
        messages = lines_of(peer)
        rank = 0
        try:
            hello = next(messages, {})
            rank = int(hello.get("rank", 0))
            if hello.get("model") != self.model or not 0 < rank < len(self.members):
                peer.sendall(json.dumps({"wait": f"{self.name(0)} runs {self.model}"}).encode() + b"\n")
                return
            self._welcome(rank, peer, hello.get("env") or {})
            self.follow(rank, messages)
        except (OSError, ValueError, TypeError):
            pass
        finally:
            with self.lock:
                if self.peers.get(rank) is peer:
                    del self.peers[rank]
            peer.close()

    def _welcome(self, rank: int, peer: socket.socket, env: Mapping[str, str]) -> None:
        if self.full.is_set():
            self.lost(rank, "it has started anew")
        with self.lock:
            before = self.peers.get(rank)
            self.peers[rank] = peer
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
        since_s, told = time.monotonic(), ("", 0.0)
        hello = json.dumps({"rank": self.rank, "model": self.model, "env": self.env}).encode() + b"\n"
        while True:
            problem = "the connection was closed"
            try:
                peer = socket.create_connection((self.address(0), self.port), timeout=5)
                peer.settimeout(self.silence_s)
                peer.sendall(hello)
                self.peers[0] = peer
                messages = lines_of(peer)
                for message in messages:
                    if "refuse" in message:
                        self.life.end(REFUSED, str(message["refuse"]))
                    if message.get("go"):
                        self.full.set()
                        threading.Thread(target=self.follow, args=(0, messages), daemon=True).start()
                        return
                    problem = str(message.get("wait") or problem)
                    if told[0] != "here":
                        told = ("here", time.monotonic())
                        say(f"waiting for rank 0 at {self.address(0)}:{self.port}: it waits for others")
                peer.close()
            except (OSError, ValueError) as error:
                problem = str(error)
            if told[0] != problem or time.monotonic() - told[1] > TELL_EVERY_S:
                told = (problem, time.monotonic())
                waited = time.monotonic() - since_s
                say(f"waiting for rank 0 at {self.address(0)}:{self.port} since {waited:.0f} s ({problem})")
            self.peers.pop(0, None)
            time.sleep(1)


def watch_memory(floor_gib: float, serving: threading.Event, life: Life) -> None:
    """End the start when MemAvailable falls under the floor; return when the engine serves."""
    while not serving.is_set():
        have = available_gib(MEMINFO.read_text(encoding="ascii"))
        if have < floor_gib:
            life.end(1, f"stopped: MemAvailable {have:.2f} GiB is below the floor of {floor_gib:.2f} GiB")
        serving.wait(MEMORY_POLL_S)


def await_health(url: str, serving: threading.Event) -> None:
    """Set ``serving`` when the API says that it is healthy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(url, timeout=10) as answer:
                if answer.status == 200:
                    serving.set()
                    return
        except (OSError, ValueError):
            pass
        time.sleep(HEALTH_POLL_S)


def ray_head(life: Life, port: int, address: str, nodes: int, stall_seconds: float, extra: Sequence[str]) -> None:
    """Start the GCS and wait for every raylet; give up when none joins for ``stall_seconds``."""
    # The dashboard listens for nobody; a worker that is given this option dies, so it is the head's alone.
    command = ["ray", "start", "--head", f"--port={port}", f"--node-ip-address={address}", "--include-dashboard=false"]
    code = subprocess.run([*command, "--disable-usage-stats", *extra], check=False).returncode
    if code:
        sys.exit(f"gb10: `ray start --head` on {address}:{port} exited {code}")
    import ray  # type: ignore[import-not-found]

    ray.init(address=f"{address}:{port}", logging_level="ERROR", log_to_driver=False)
    life.heed_stops()  # Ray has put a handler of its own in their place, which ends this process as if it had failed
    joined, since = -1, time.monotonic()
    while joined < nodes:
        now = sum(1 for node in ray.nodes() if node["Alive"])
        if now != joined:
            joined, since = now, time.monotonic()
            say(f"ray nodes joined {joined} of {nodes}")
        elif time.monotonic() - since > stall_seconds:
            here = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
            sys.exit(f"gb10: only {joined} of {nodes} Ray nodes joined in {stall_seconds:.0f} s: {', '.join(here)}")
        time.sleep(0.5)
    ray.shutdown()


def wait_for_head(host: str, port: int) -> None:
    """Wait until the head's GCS accepts connections."""
    since = time.monotonic()
    told = 0.0
    while True:
        try:
            with socket.create_connection((host, port), timeout=2):
                return
        except OSError as error:
            waited = time.monotonic() - since
            if waited - told >= TELL_EVERY_S:
                told = waited
                say(f"waiting for the Ray head at {host}:{port} since {waited:.0f} s ({error})")
        time.sleep(0.5)


def names(text: str) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name for name in text.split(",") if name]


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options and the command behind `--`; argparse's own REMAINDER would swallow the options before it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["serve", "ray-head", "ray-worker"])
    parser.add_argument("--model", default="", help="what the ranks of one engine call themselves")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--members", default="", help="node=fabric address of every rank, comma-separated")
    parser.add_argument("--tether-port", type=int, default=0, help="where the ranks meet, on the head's address")
    parser.add_argument("--silence-seconds", type=float, default=30.0, help="a rank that is silent so long is gone")
    parser.add_argument("--health", default="", help="URL that answers 200 when the engine serves")
    parser.add_argument("--floor-gib", type=float, default=0.0, help="MemAvailable that a start must leave")
    parser.add_argument("--port", type=int, default=6379, help="Ray's port on the head")
    parser.add_argument("--stall-seconds", type=float, default=600.0)
    parser.add_argument("--require-env", type=names, default=[], help="comma-separated variables that must be set")
    parser.add_argument("--same-env", type=names, default=[], help="variables that must be the same on every rank")
    parser.add_argument("--ray-arg", action="append", default=[])
    given = list(argv)
    cut = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:cut]), given[cut + 1 :]


def main(argv: Sequence[str] | None = None) -> None:
    """Gather the ranks, do what the role of this node asks for, run the command and watch it."""
    args, command = parse(sys.argv[1:] if argv is None else argv)
    missing = missing_environment(args.require_env, os.environ)
    if missing:
        sys.exit(
            f"gb10: missing environment: {', '.join(missing)} must be set in every rank's container before the engine "
            "starts; see model_spec.env"
        )
    life = Life()
    life.heed_stops()
    addresses = [member.partition("=")[2] for member in args.members.split(",")]
    serving = threading.Event()
    group = Group(args, life) if args.tether_port and len(addresses) > 1 else None
    if group:
        serving = group.serving
        group.gather()
    if args.floor_gib > 0:
        threading.Thread(target=watch_memory, args=(args.floor_gib, serving, life), daemon=True).start()
    if args.health:
        threading.Thread(target=announce, args=(args.health, serving, group), daemon=True).start()
    if args.role == "ray-head":
        ray_head(life, args.port, addresses[args.rank], len(addresses), args.stall_seconds, args.ray_arg)
    elif args.role == "ray-worker":
        command = ["ray", "start", "--block", f"--address={addresses[0]}:{args.port}"]
        command += [f"--node-ip-address={addresses[args.rank]}", "--disable-usage-stats", *args.ray_arg]
        wait_for_head(addresses[0], args.port)
        say(f"joining Ray at {addresses[0]}:{args.port} as {addresses[args.rank]}")
    life.run(command)


def announce(url: str, serving: threading.Event, group: Group | None) -> None:
    """Wait until the API is healthy, and tell the other ranks that the start is over."""
    await_health(url, serving)
    if group:
        group.send({"serving": True})


if __name__ == "__main__":
    main()
