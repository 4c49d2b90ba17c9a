# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests do to the lab, and how they look at it from outside.

`run` runs a playbook; `node_exec`, `api_get` and `api_post` are the independent witnesses: they
go through the host's Docker Engine and plain HTTP, never through Ansible.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests

from lab import waiting
from lab.errors import LabError
from lab.plan import DEFAULT_NAME, container_name
from lab.runs import RunResult, run_playbook

REPO = Path(__file__).resolve().parents[2]
INVENTORY = "inventories/lab"
NODES = ("gx10-1", "gx10-2", "gx10-3", "gx10-4")
HEAD = NODES[0]
API = "http://10.210.0.11:8000"

T = TypeVar("T")


def run(
    playbook: str | Path,
    extravars: Mapping[str, Any] | None = None,
    *,
    ok: bool | None = True,
    inventory: str | Path | Sequence[str | Path] = INVENTORY,
    **options: Any,
) -> RunResult:
    """Run a playbook on the lab; `options` are those of lab.runs.run_playbook.

    `ok` is what is expected: True (it succeeds), False (it fails) or None (either). Another end
    fails the test with the run's counts and failures.
    """
    result = run_playbook(playbook, inventory, extravars, **options)
    if ok is not None and (result.rc == 0) is not ok:
        expected = "should have succeeded" if ok else "should have failed"
        raise AssertionError(f"{playbook} {expected}: {result.describe()}")
    return result


def assert_converged(result: RunResult, nodes: Sequence[str] = NODES) -> None:
    """Fail unless the run went over every node and changed none; the changed tasks are named."""
    missing = [node for node in nodes if node not in result.stats]
    assert not missing, f"the run left out {', '.join(missing)}: {result.describe()}"
    changed = result.changed_tasks()
    assert not changed, "a run that should have changed nothing changed:\n" + "\n".join(changed)


@dataclass(frozen=True)
class Output:
    """What a command on a node gave."""

    rc: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()


def container_of(node: str | int, lab: str = DEFAULT_NAME) -> str:
    """Return the name of a node's container; the node is given as gx10-2 or 2."""
    return container_name(lab, int(str(node).rsplit("-", 1)[-1]))


def node_exec(node: str | int, command: str | Sequence[str], *, check: bool = True, lab: str = DEFAULT_NAME) -> Output:
    """Run a command as root on a node through the host's Docker Engine; a string goes to sh -c.

    Through Docker's own client: the Python library loses what comes with the head of the answer (its issue 2042).
    Raises AssertionError with the command's output when it fails and `check` is set.
    """
    words = ["sh", "-c", command] if isinstance(command, str) else list(command)
    done = subprocess.run(["docker", "exec", container_of(node, lab), *words], capture_output=True, check=False)
    output = Output(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    if check and output.rc != 0:
        raise AssertionError(f"on {node}: {shlex.join(words)} ended with {output.rc}\n{output.stdout}{output.stderr}")
    return output


def on_all(command: str | Sequence[str], nodes: Sequence[str] = NODES, *, check: bool = True) -> dict[str, Output]:
    """Run a command on several nodes, one after the other; return the outputs by node."""
    return {node: node_exec(node, command, check=check) for node in nodes}


def containers_on(node: str | int, *, stopped: bool = False) -> list[str]:
    """Return the names of the containers that a node's own Docker Engine runs (or also keeps); none without one."""
    everything = " -a" if stopped else ""
    ask = f"! command -v docker > /dev/null || docker ps{everything} --format '{{{{.Names}}}}'"
    return sorted(node_exec(node, ask).lines)


def unit_state(node: str | int, unit: str) -> dict[str, str]:
    """Return what systemd says of a unit: ActiveState, SubState, NRestarts, ExecMainStartTimestampMonotonic, ..."""
    fields = "Id,LoadState,ActiveState,SubState,UnitFileState,NRestarts,MainPID,ExecMainStartTimestampMonotonic"
    lines = node_exec(node, f"systemctl show --property={fields} {shlex.quote(unit)}").lines
    return dict(line.split("=", 1) for line in lines if "=" in line)


@cache
def _http() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # the lab's networks are on this host: no proxy leads there
    return session


def api_get(path: str, *, timeout_s: float = 30, base: str = API) -> requests.Response:
    """GET a path of the served API, such as /v1/models; return the response whatever its status."""
    return _http().get(f"{base}{path}", timeout=timeout_s)


def api_post(path: str, body: Mapping[str, Any], *, timeout_s: float = 300, base: str = API) -> requests.Response:
    """POST JSON to a path of the served API; return the response whatever its status."""
    return _http().post(f"{base}{path}", json=body, timeout=timeout_s)


def served_models(base: str = API) -> list[str]:
    """Return the ids in /v1/models; an endpoint that does not answer, or a proxy without an engine, serves none."""
    try:
        response = api_get("/v1/models", base=base)
    except requests.ConnectionError:
        return []
    if response.status_code == requests.codes.unavailable:
        return []
    response.raise_for_status()
    return [str(model["id"]) for model in response.json()["data"]]


def stop_what_serves() -> None:
    """Stop the model that the tests before left served, if any, on every node."""
    if served_models():
        run("playbooks/stop.yml")
        assert served_models() == []
        for node in NODES:
            assert containers_on(node) == []


def chat(model: str, text: str, *, max_tokens: int = 24, base: str = API, **options: object) -> dict[str, Any]:
    """Return a chat completion's JSON; fail with the server's words when there is none."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, **options}
    response = api_post("/v1/chat/completions", body, base=base)
    assert response.status_code == 200, f"chat completion: {response.status_code} {response.text}"
    answer: dict[str, Any] = response.json()
    return answer


def lab(verb: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m lab <verb> <args>` and return its output; fail with it when `check` is set."""
    done = subprocess.run(
        [sys.executable, "-m", "lab", verb, *args], cwd=REPO, check=False, capture_output=True, text=True
    )
    if check and done.returncode != 0:
        raise AssertionError(f"lab {verb} {' '.join(args)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def inventory_of(name: str) -> list[str]:
    """Return the options by which Ansible finds the nodes of a lab that is not the default one."""
    state = REPO / ".lab" / name
    return ["-i", "molecule/shared/inventory", "-i", str(state / "inventory.yml"), "-e", f"gb10_lab_dir={state}"]


@contextmanager
def own_lab(config: pytest.Config, name: str, nodes: int, *options: str) -> Iterator[bool]:
    """Bring up a lab for one module and remove it at the end, as far as pytest's options want it; True if it is new."""
    reuse = bool(config.getoption("--reuse-lab"))
    if not reuse:
        lab("down", "--name", name)
        lab("up", "--name", name, "--nodes", str(nodes), *options)
    yield not reuse
    if not reuse and not config.getoption("--keep-lab"):
        lab("down", "--name", name)


def wait_until(
    what: str,
    ask: Callable[[], T],
    *,
    stall_s: float,
    progress: Callable[[], object] = lambda: None,
    every_s: float = 1.0,
) -> T:
    """Ask until the answer is true and return it; fail with the last answer when nothing moves for `stall_s`.

    `progress` is what shows a move, such as the size of a log; without it, the time counts from the start.
    """
    try:
        return waiting.wait_until(
            ask,
            progress,
            lambda answer: f"{what}: no progress for {stall_s:.0f} s; last answer {answer!r}",
            stall_seconds=stall_s,
            every_seconds=every_s,
        )
    except LabError as error:
        raise AssertionError(str(error)) from error


def wait_for_end(process: subprocess.Popen[bytes], log: Path, *, stall_s: float = 600) -> int:
    """Return the exit status of a process that writes to a log; fail when it does neither for `stall_s`."""
    wait_until(
        f"the end of the run that writes {log}",
        lambda: process.poll() is not None,
        progress=lambda: log.stat().st_size,
        stall_s=stall_s,
        every_s=0.2,
    )
    return int(process.returncode)
