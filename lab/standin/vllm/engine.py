# SPDX-License-Identifier: Apache-2.0
"""Plays one rank of an engine: the phases of a start in its log, the meeting of the ranks, the API, the deaths.

``GB10_STANDIN_FAIL`` (or the file ``gb10-standin-fail`` in the cache directory) holds one of
``die-at-load``, ``hang-at-load``, ``no-cache``, ``starve-memory:<GiB at most>``, ``no-tokens``, ``wrong-model`` and
``die-after:<seconds>``, with ``@<rank>`` behind it when one rank alone is meant.  The file is read at every start.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import STAND_IN, api

CACHE = Path(os.environ.get("VLLM_CACHE_ROOT", "/root/.cache/vllm"))
PEER_POLL_S = 0.5
PAUSE_S = float(os.environ.get("GB10_STANDIN_PAUSE", "0.2"))
MODES = ("die-at-load", "hang-at-load", "no-cache", "starve-memory", "no-tokens", "wrong-model", "die-after")
_PRINTING = threading.Lock()
_GLOO = "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534]"


def say(text: str) -> None:
    """Print whole lines at once."""
    with _PRINTING:
        print(text, flush=True)


def log(process: str, source: str, text: str, level: str = "INFO") -> None:
    """Print one line in vLLM's form."""
    say(f"({process} pid={os.getpid()}) {level} {time.strftime('%m-%d %H:%M:%S')} [{source}] {text}")


def traceback_of(process: str, error: str) -> None:
    """Print an exception as the named process of vLLM prints one that it did not expect."""
    mark = f"({process} pid={os.getpid()})"
    say(f'{mark} Traceback (most recent call last):\n{mark}   File "{STAND_IN}", line 1, in play\n{mark} {error}')


def failure(environment: Mapping[str, str], cache: Path, rank: int) -> tuple[str, float]:
    """Return (what this rank was told to fail at, its figure), or ("", 0.0).

    :raises ValueError: when it was told something that it does not know.
    """
    file = cache / "gb10-standin-fail"
    told = environment.get("GB10_STANDIN_FAIL") or (file.read_text(encoding="ascii").strip() if file.is_file() else "")
    if not told:
        return "", 0.0
    word, _at, only = told.partition("@")
    mode, _colon, seconds = word.partition(":")
    if mode not in MODES:
        raise ValueError(f"GB10_STANDIN_FAIL is '{told}'; the stand-in can {', '.join(MODES)}")
    return (mode, float(seconds or 0)) if not only or int(only) == rank else ("", 0.0)


class Peers:
    """The other ranks of a native multi-node engine, as sockets; what real ranks have is Gloo and NCCL."""

    def __init__(self) -> None:
        self.lost = ""
        self.sockets: dict[int, socket.socket] = {}

    def gather(self, address: str, port: int, count: int) -> None:
        """Rank 0: wait for ``count`` others, then let all go on.  Nobody listens on the port afterwards."""
        with socket.create_server((address, port)) as server:
            while len(self.sockets) < count:
                peer, _where = server.accept()
                rank = int(peer.makefile("r", encoding="ascii").readline())
                self.sockets[rank] = peer
        for peer in self.sockets.values():
            peer.sendall(b"go\n")
        for rank in self.sockets:
            threading.Thread(target=self._watch, args=(rank,), daemon=True).start()

    def join(self, address: str, port: int, rank: int) -> None:
        """Another rank: find rank 0, and wait until all are there.

        :raises ConnectionError: when rank 0 leaves before that.
        """
        while True:
            try:
                peer = socket.create_connection((address, port), timeout=5)
                break
            except OSError:
                time.sleep(PEER_POLL_S)
        peer.settimeout(None)
        peer.sendall(f"{rank}\n".encode("ascii"))
        if peer.recv(3) != b"go\n":
            raise ConnectionError(f"Connection closed by peer [{address}]:{port}")
        self.sockets[0] = peer

    def wait_for_end(self, address: str, port: int) -> str:
        """Another rank: return, when rank 0 is gone, what Gloo says of it."""
        self._watch(0)
        return f"{_GLOO} Connection closed by peer [{address}]:{port}"

    def _watch(self, rank: int) -> None:
        peer = self.sockets[rank]
        try:
            while peer.recv(1):
                pass
            where = peer.getpeername()
        except OSError:
            where = ("0.0.0.0", 0)
        self.lost = self.lost or (f"{_GLOO} Connection closed by peer [{where[0]}]:{where[1]}")


class Engine:
    """One rank."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.rank = int(given.get("node_rank") or 0)
        self.model = Path(given.get("model_tag") or given.get("model") or "")
        self.world = int(given.get("tensor_parallel_size") or 1) * int(given.get("pipeline_parallel_size") or 1)
        self.ray = given.get("distributed_executor_backend") == "ray"
        self.mode, self.seconds = failure(os.environ, CACHE, self.rank)
        self.peers = Peers()
        self.healthy = True

    def configure(self) -> int:
        """Read the model's configuration, as vLLM's first lines tell; returns the context length."""
        log("APIServer", "api_utils.py:286", f"non-default args: {self.shown()}")
        log("APIServer", "stand-in", f"This is {STAND_IN}: it loads no weights and runs no model.", "WARNING")
        config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        length = int(self.given.get("max_model_len") or config.get("max_position_embeddings") or 0)
        log("APIServer", "model.py:733", f"Resolved architecture: {(config.get('architectures') or ['unknown'])[0]}")
        log("APIServer", "model.py:2152", f"Using max model len {length}")
        return length

    def shown(self) -> dict[str, Any]:
        """Return the arguments for the log."""
        return {key: ("********" if key == "api_key" else value) for key, value in self.given.items()}

    def meet(self) -> None:
        """Wait for the other ranks."""
        log("EngineCore", "core.py:133", f"Initializing a V1 LLM engine (v0.32.0) with config: model='{self.model}'")
        nodes = int(self.given.get("nnodes") or 1)
        address, port = str(self.given.get("master_addr") or "127.0.0.1"), int(self.given.get("master_port") or 29501)
        if self.ray:
            ray = importlib.import_module("ray")
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"))
            while sum(1 for node in ray.nodes() if node["Alive"]) < self.world:
                log(
                    "EngineCore",
                    "ray_utils.py:480",
                    f"Waiting for creating a placement group of specs for {self.world}",
                )
                time.sleep(PEER_POLL_S)
            threading.Thread(target=self._watch_ray, args=(ray,), daemon=True).start()
        elif nodes > 1 and self.rank == 0:
            self.peers.gather(address, port, nodes - 1)
        elif nodes > 1:
            self.peers.join(address, port, self.rank)
        log(
            "Worker",
            "parallel_state.py:1906",
            f"world_size={self.world} rank={self.rank} local_rank=0 distributed_init_method=tcp://{address}:{port} "
            "backend=gloo",
        )

    def load(self) -> None:
        """Walk through the phases of loading; dies or hangs there when it was told to."""
        log("Worker", "cpu_model_runner.py:60", f"Starting to load model {self.model}...")
        time.sleep(PAUSE_S)
        if self.mode == "hang-at-load":
            threading.Event().wait()
        if self.mode == "die-at-load":
            raise RuntimeError(f"{STAND_IN} was told to die while it loads weights")
        if self.mode == "starve-memory":
            self.starve(self.seconds or 1.0)
        if self.mode == "no-cache":
            raise ValueError(
                "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
                "the engine."
            )
        shards = len(list(self.model.glob("*.safetensors")))
        for done in range(shards + 1):
            say(
                f"Loading safetensors checkpoint shards: {100 * done // max(shards, 1):3d}% Completed | "
                f"{done}/{shards} [00:00<00:00,  9.99it/s]"
            )
        log("Worker", "default_loader.py:501", f"Loading weights took {PAUSE_S:.2f} seconds")
        log("Worker", "gpu_model_runner.py:5149", f"Model loading took 0.01 GiB memory and {PAUSE_S:.6f} seconds")
        time.sleep(PAUSE_S)
        log("Worker", "cpu_worker.py:204", "Available KV cache memory: 0.06 GiB")
        log(
            "EngineCore",
            "kv_cache_utils.py:2327",
            "GPU KV cache size: 65,536 tokens, Maximum concurrency for 4,096 tokens per request: 16.00x",
        )
        time.sleep(PAUSE_S)
        log("EngineCore", "core.py:395", "init engine (profile, create kv cache, warmup model) took 0.60 s")

    def starve(self, gib: float) -> None:
        """Take memory of the node bit by bit, as weights that are too many do; whoever watches ends this.

        :raises MemoryError: when all was taken and nobody did.
        """
        taken: list[bytes] = []
        while len(taken) * 32 < gib * 1024:
            taken.append(b"x" * (32 << 20))
            time.sleep(0.05)
        raise MemoryError(f"{STAND_IN} took {gib:g} GiB and nobody stopped it")

    def serve(self, length: int) -> int:
        """Rank 0: answer the API until the engine dies or is told to end."""
        names = self.given.get("served_model_name") or [str(self.model)]
        key = os.environ.get("VLLM_API_KEY", "")
        keys = [*(self.given.get("api_key") or []), *([key] if key else [])]
        listed = [f"{STAND_IN}/another-model"] if self.mode == "wrong-model" else list(names)
        host, port = str(self.given.get("host") or "0.0.0.0"), int(self.given.get("port") or 8000)
        log("APIServer", "entry.py:140", f"Starting vLLM server on http://{host}:{port}")
        server = api.Server(
            (host, port),
            api.Service(
                listed, str(self.model), length, keys, self.mode == "no-tokens", self.health, self.compute, say
            ),
        )
        say(f"INFO:     Started server process [{os.getpid()}]\nINFO:     Waiting for application startup.")
        say("INFO:     Application startup complete.")
        if self.mode == "die-after":
            threading.Timer(self.seconds, self.die, [f"RuntimeError: {STAND_IN} was told to die now"]).start()
        server.serve_forever()
        return 0

    def health(self) -> bool:
        """Tell whether the API knows of no death; a native head does not notice that a peer is gone."""
        return self.healthy

    def compute(self) -> bool:
        """Tell whether all ranks answer: the first completion after a peer's death ends a native engine."""
        if self.peers.lost and self.healthy:
            self.die(self.peers.lost)
        return self.healthy

    def die(self, error: str) -> None:
        """Print what the engine's processes print when one of them dies; the API follows two seconds later."""
        self.healthy = False
        traceback_of("EngineCore", error)
        log("APIServer", "async_llm.py:906", "AsyncLLM output_handler failed.", "ERROR")
        log(
            "APIServer",
            "async_llm.py:906",
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. "
            "See stack trace (above) for the root cause.",
            "ERROR",
        )
        end = threading.Timer(2.0, os._exit, [1])
        end.daemon = True
        end.start()

    def _watch_ray(self, ray: Any) -> None:
        while True:
            time.sleep(PEER_POLL_S)
            try:
                alive = sum(1 for node in ray.nodes() if node["Alive"])
            except OSError:
                alive = 0
            if alive < self.world:
                log(
                    "EngineCore",
                    "ray_executor_v2.py:522",
                    "RayWorkerProc rank=[1] died unexpectedly, shutting down executor.",
                    "ERROR",
                )
                self.die(f"RuntimeError: {alive} of {self.world} Ray nodes are left")
                return


def run(given: dict[str, Any]) -> int:
    """Play the rank that the command line asks for; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    if given.get("headless"):
        now = time.strftime("%m-%d %H:%M:%S")
        say(f"INFO {now} [serve.py:262] Launching vLLM (v0.32.0) headless executor")
    try:
        engine = Engine(given)
        length = engine.configure()
        engine.meet()
        engine.load()
        if not given.get("headless"):
            return engine.serve(length)
        address, port = str(given.get("master_addr")), int(given.get("master_port") or 29501)
        if engine.mode == "die-after":
            threading.Timer(engine.seconds, engine.die, [f"RuntimeError: {STAND_IN} was told to die now"]).start()
        traceback_of("Worker", engine.peers.wait_for_end(address, port))
    except Exception as error:  # noqa: BLE001 - whatever ends the engine is told as vLLM tells it
        traceback_of("EngineCore", f"{type(error).__name__}: {error}")
        say(f"(APIServer pid={os.getpid()}) RuntimeError: Engine core initialization failed. See root cause above.")
    return 1
