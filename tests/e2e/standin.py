# SPDX-License-Identifier: Apache-2.0
"""A lab of three nodes on which the stand-in engine serves, prepared by the playbooks of molecule/engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e import harness
from tests.e2e.harness import REPO

LAB = "faults"
NODES = (1, 2, 3)
STATE = REPO / ".lab" / LAB
KEY = "molecule-key-5309"
#: More than any host takes; what a fault took is measured.
READY_S = 600.0


def prepared(config: pytest.Config) -> Iterator[None]:
    """Bring up the lab with the stand-in's image and weights on it, and take it down at the end."""
    with harness.own_lab(config, LAB, len(NODES)) as made:
        if made:
            play("prepare")
        yield


def play_command(*playbooks: str, **extra: str) -> list[str]:
    """Return the command that runs playbooks of molecule/engine on this lab."""
    words = [str(Path(sys.executable).with_name("ansible-playbook")), *harness.inventory_of(LAB)]
    for name, value in extra.items():
        words += ["-e", f"{name}={value}"]
    return [*words, *(f"molecule/engine/{name}.yml" for name in playbooks)]


def play_environment() -> dict[str, str]:
    """Return the environment that the scenario's playbooks read."""
    own = {"MOLECULE_PROJECT_DIRECTORY": str(REPO), "GB10_LAB": LAB, "GB10_LAB_NODES": str(len(NODES))}
    return {**os.environ, **own, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}


def play(*playbooks: str, ok: bool = True, **extra: str) -> str:
    """Run playbooks to their end, which must be as expected; return what they printed."""
    done = subprocess.run(
        play_command(*playbooks, **extra), cwd=REPO, env=play_environment(), capture_output=True, text=True, check=False
    )
    text = done.stdout + done.stderr
    assert (done.returncode == 0) is ok, f"{playbooks} {extra} ended with {done.returncode}:\n{text[-4000:]}"
    return text


def lab(*words: str) -> None:
    """Run `python -m lab <verb>` on this lab."""
    harness.lab(words[0], "--name", LAB, *words[1:])


def on(node: int, script: str, *, check: bool = True) -> str:
    """Run a script as root on a node, past Ansible and SSH; return what it printed."""
    return harness.node_exec(node, script, check=check, lab=LAB).stdout


def api() -> str:
    """Return the URL of the head's API."""
    hosts = json.loads((STATE / "hosts.json").read_text(encoding="utf-8"))
    text = json.dumps(hosts)
    found = re.search(r"10\.\d+\.\d+\.11", text)
    assert found, text
    return f"http://{found[0]}:8000"


def tokens() -> int:
    """Return how many tokens a completion yields now, from outside; 0 when none comes."""
    session = requests.Session()
    session.trust_env = False
    try:
        models = session.get(f"{api()}/v1/models", headers={"Authorization": f"Bearer {KEY}"}, timeout=3).json()
        body = {"model": models["data"][0]["id"], "prompt": "x", "max_tokens": 3}
        answer = session.post(
            f"{api()}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=3
        )
        return int(answer.json()["usage"]["completion_tokens"]) if answer.status_code == 200 else 0
    except (requests.RequestException, ValueError, KeyError):
        return 0


def until(what: str, ask: Callable[[], Any]) -> float:
    """Wait until it is so; return after how many seconds."""
    start = time.monotonic()
    harness.wait_until(what, ask, stall_s=READY_S, every_s=0.25)
    return time.monotonic() - start
