# SPDX-License-Identifier: Apache-2.0
"""Dynamo's real frontend with its mocker on the loopback interface, and AIPerf: each in a cached environment.

The frontend is the one that answers in a cluster; the mocker takes the place of a GPU worker: it answers with random
tokens at a given pace. No etcd, no NATS, no GPU. Release 1.4.0: 1.5 and 1.6 require the package aisimulate, which is a
stub for Python 3.11 to 3.13.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.kube.server import KubeError, Processes
from lab.locks import locked
from lab.models import qwen3_files
from lab.ports import free_port

HERE = Path(__file__).parent
#: Environment → its exact versions.
LOCKS = {"frontend": HERE / "frontend.txt", "aiperf": HERE / "aiperf.txt"}
CACHE = Path("~/.cache/gb10").expanduser()
#: The mocker's tokens begin at 1000; a smaller vocabulary decodes none of them.
VOCABULARY = 4096
CONTEXT_TOKENS = 65536
BLOCK_TOKENS = 64
#: Neither program prints anything and the model is not listed.
STALL_SECONDS = 300.0


def environment(name: str) -> Path:
    """Return where an environment is kept: another lock or another Python is another directory."""
    text = LOCKS[name].read_bytes() + sys.version.encode()
    return CACHE / f"dynamo-{name}-{hashlib.sha256(text).hexdigest()[:12]}"


def find(name: str) -> Path | None:
    """Return an environment that is complete, or None."""
    at = environment(name)
    return at if (at / ".complete").is_file() else None


def version(name: str, package: str) -> str:
    """Return the version that a lock has of a package."""
    lines = LOCKS[name].read_text(encoding="utf-8").splitlines()
    return next(line.split("==")[1].split()[0] for line in lines if line.startswith(f"{package}=="))


def install(name: str, say: Callable[[str], None]) -> Path:
    """Return an environment, made from its lock where there is none yet.

    :raises KubeError: the installation failed; the message has its last words.
    """
    at = environment(name)
    with locked(CACHE / f"{at.name}.lock"):
        if find(name):
            return at
        shutil.rmtree(at, ignore_errors=True)
        say(f"installing {at.name} from lab/kube/{LOCKS[name].name} (hundreds of megabytes, once)")
        uv = shutil.which("uv")
        made = [uv, "venv", "--quiet", "--python"] if uv else None
        steps = [
            [*made, sys.executable, str(at)] if made else [sys.executable, "-m", "venv", str(at)],
            [uv, "pip", "install", "--quiet", "--python", str(at), "-r", str(LOCKS[name])] if uv
            else [str(at / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                  "--no-compile", "-r", str(LOCKS[name])],
        ]  # fmt: skip
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                raise KubeError(f"{' '.join(step[:4])} … ended with {done.returncode}: {done.stderr[-1500:]}")
        (at / ".complete").write_text(f"{LOCKS[name].name}\n", encoding="utf-8")
    return at


def model_directory(at: Path) -> Path:
    """Make a model's directory without weights: configuration, chat template, and a token for each byte."""
    made = {name: json.loads(data) for name, data in qwen3_files().items() if "safetensors" not in name}
    vocabulary = made["tokenizer.json"]["model"]["vocab"]
    vocabulary |= {f"Ġword{number}": number for number in range(len(vocabulary), VOCABULARY)}
    made["config.json"] |= {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT_TOKENS}
    made["tokenizer_config.json"]["model_max_length"] = CONTEXT_TOKENS
    at.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (at / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return at


def post(url: str, body: bytes) -> tuple[int, str]:
    """Return status and text of a completion's answer."""
    asked = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def models(url: str) -> tuple[int, str]:
    """Return status and text of the answer to /v1/models; 0 where nobody listens yet."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except OSError:
        return 0, ""


@contextlib.contextmanager
def serving(directory: Path, model: str, speed: float = 1.0) -> Iterator[str]:
    """Start frontend and mocker; yield the URL once the model is listed.

    :param directory: an empty one, for logs and for what the two tell each other.
    :param model: the served name.
    :param speed: of the mocker; 1 is a GPU's pace, 0.1 a tenth of it.
    :raises KubeError: one of them ended, or nothing goes on any more.
    """
    kept = find("frontend")
    if kept is None:
        raise KubeError("There is no frontend: `make bench-dynamo` installs it.")
    python, files, port = str(kept / "bin" / "python"), model_directory(directory / "model"), free_port()
    own = {
        "DYN_FILE_KV": str(directory / "discovery"), "DYN_TCP_RPC_HOST": "127.0.0.1", "HOME": str(directory),
        "XDG_CACHE_HOME": str(directory / "cache"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    common = ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
    processes = Processes(directory)
    try:
        processes.start("frontend", [
            python, "-m", "dynamo.frontend", *common, "--router-mode", "kv", "--router-kv-events",
            "--kv-cache-block-size", str(BLOCK_TOKENS), "--http-host", "127.0.0.1", "--http-port", str(port),
        ], own)  # fmt: skip
        # With a port (0: any) the mocker serves the model's files to the frontend, which asks a hub otherwise.
        processes.start("mocker", [
            python, "-m", "dynamo.mocker", *common, "--model-path", str(files), "--model-name", model,
            "--block-size", str(BLOCK_TOKENS), "--max-num-seqs", "64", "--enable-prefix-caching",
            "--speedup-ratio", str(speed),
        ], {**own, "DYN_SYSTEM_PORT": "0"})  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        _listed(url, model, directory, processes)
        yield url
        processes.check()
    finally:
        processes.stop()


def _listed(url: str, model: str, directory: Path, processes: Processes) -> None:
    """Wait until the frontend lists the model; it logs each question, so the mocker's log alone is progress."""
    size, moved = -1, time.monotonic()
    while f'"{model}"' not in models(url)[1]:
        processes.check()
        now = (directory / "mocker.log").stat().st_size
        if now != size:
            size, moved = now, time.monotonic()
        if time.monotonic() - moved > STALL_SECONDS:
            tail = (directory / "frontend.log").read_text(encoding="utf-8", errors="replace")[-1500:]
            raise KubeError(f"The frontend does not list {model} and the mocker is silent: {tail}")
        time.sleep(0.3)


def lend_tokenizers() -> None:
    """Let this process import the package tokenizers of the frontend's environment; what is here comes first."""
    kept = find("frontend")
    if kept is not None:
        sys.path += [str(path) for path in (kept / "lib").glob("python3*/site-packages")]


def on_path(name: str) -> str:
    """Return a PATH whose first directory is an environment's."""
    return f"{environment(name) / 'bin'}{os.pathsep}{os.environ['PATH']}"
