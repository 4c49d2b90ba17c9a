# SPDX-License-Identifier: Apache-2.0
"""What `make demo` runs: from no lab at all to a served model, a swap and a completion.

    python -m lab.demo [--nodes 2] [--second-model tiny-nemotronh]

Two nodes show all that four do, and sooner; ``--nodes 4`` is the lab of the end-to-end tests.
Everything that a second run needs is kept (nodes, wheels, models, images), so it goes straight
through to the completion.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml
from rich.console import Console
from rich.rule import Rule

from lab import settings
from lab.engine_wheels import BASE_TAR
from lab.runs import REPO, RunResult, run_playbook

INVENTORY = "inventories/lab"
#: The heads of the tiny models can be divided among so many nodes.
SPREADS = (1, 2, 4)
API = "http://10.210.0.11:8000"
QUESTION = "Who are you, and where do you run?"


class DemoError(Exception):
    """A step of the demo did not do what it is for; the text says which, and what to look at."""


@dataclass(frozen=True)
class Answer:
    """A chat completion: who answered, what, with how many tokens, in how many seconds."""

    model: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


def start_module(*words: str) -> subprocess.Popen[bytes]:
    """Start a module of the lab with its output on the terminal."""
    return subprocess.Popen([sys.executable, "-m", *words], cwd=REPO)


def end_module(process: subprocess.Popen[bytes]) -> None:
    """Wait for a module of the lab; raise DemoError when it fails."""
    if status := process.wait():
        words = list(process.args)[1:] if isinstance(process.args, list) else []
        raise DemoError(f"`python {' '.join(map(str, words))}` ended with exit status {status}; see above.")


def run_module(*words: str) -> None:
    """Run a module of the lab with its output on the terminal; raise DemoError when it fails."""
    end_module(start_module(*words))


def prepare_lab(nodes: int, *, with_docker: bool = False) -> None:
    """Bring up the lab and, beside it, provide what the engine's image and the models are made of.

    :param with_docker: whether nodes have Docker from the start, as DGX OS has.
    :raises DemoError: when a part of it fails.
    """
    # Measurements need the proportion of the two networks; at the default of 50 Mbit/s the wheels alone take 80 s.
    rates = ("--fabric-rate", "10gbit", "--mgmt-rate", "1gbit")
    up = start_module("lab", "up", "--nodes", str(nodes), *rates, *(["--with-docker"] if with_docker else []))
    try:
        # The wheels are those for the Python of the image's base, which is made before the nodes.
        while up.poll() is None and not BASE_TAR.exists():
            time.sleep(0.2)
        if not up.poll():
            run_module("lab.engine_wheels")
            run_module("lab.models")
    finally:
        up.wait()
    end_module(up)


def nodes_at_hand(state: Path = REPO / ".lab/lab") -> int:
    """Return how many nodes the lab has that a demo before this one left, 0 without one."""
    kept = settings.load(state)
    return kept.nodes if kept else 0


def write_site(nodes: int, repo: Path = REPO) -> str:
    """Return the inventory of the nodes that a lab of this many nodes serves on, a path below ``repo``.

    For four and more it is inventories/lab.  For fewer it is written anew as .lab/demo: the first nodes of
    inventories/lab with links to its other files, and the models spread over these nodes.
    """
    members = max(spread for spread in SPREADS if spread <= nodes)
    if members == max(SPREADS):
        return INVENTORY
    document = yaml.safe_load((repo / INVENTORY / "hosts.yml").read_text(encoding="utf-8"))
    document["all"]["vars"]["model_overrides"] = {"nodes": members, "serve": {"tensor-parallel-size": members}}
    workers = document["all"]["children"]["gx10"]["children"]["workers"]
    workers["hosts"] = dict(list(workers["hosts"].items())[: members - 1])
    site = repo / ".lab/demo"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for name in ("group_vars", "model.constructed.yml"):
        (site / name).symlink_to(Path("../..") / INVENTORY / name)
    (site / "hosts.yml").write_text(
        f"# Written by `make demo`: the first nodes of {INVENTORY}.\n---\n{yaml.safe_dump(document)}", encoding="utf-8"
    )
    return str(site.relative_to(repo))


def served_models(session: requests.Session, api: str = API) -> list[str]:
    """Return the ids in /v1/models of the head's API."""
    response = session.get(f"{api}/v1/models", timeout=300)
    response.raise_for_status()
    return [str(model["id"]) for model in response.json()["data"]]


def ask(session: requests.Session, model: str, question: str, api: str = API) -> Answer:
    """Ask the served model; raise DemoError when it refuses or its answer has no token."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 32,
        "temperature": 0,
    }
    start = time.monotonic()
    response = session.post(f"{api}/v1/chat/completions", json=body, timeout=600)
    if response.status_code != 200:
        raise DemoError(f"{api} answered the completion with status {response.status_code}: {response.text}")
    answer = response.json()
    usage = answer["usage"]
    if usage["completion_tokens"] < 1:
        raise DemoError(f"{api} answered the completion without a token: {answer}")
    message = answer["choices"][0]["message"]
    return Answer(
        model=str(answer["model"]),
        text=str(message.get("content") or message.get("reasoning") or message.get("reasoning_content") or ""),
        prompt_tokens=int(usage["prompt_tokens"]),
        completion_tokens=int(usage["completion_tokens"]),
        seconds=time.monotonic() - start,
    )


def play(console: Console, site: str, playbook: str, extravars: dict[str, Any] | None = None) -> RunResult:
    """Run a playbook on the lab; raise DemoError when it fails."""
    result = run_playbook(playbook, site, extravars, console=console)
    if result.rc != 0:
        raise DemoError(f"{playbook} failed: {result.describe()}")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description="From no lab to a served, swapped model.")
    parser.add_argument("--nodes", type=int, choices=range(1, 9), help="default: as many as there are, or 2")
    parser.add_argument("--second-model", default="tiny-nemotronh")
    args = parser.parse_args(argv)
    nodes = args.nodes or nodes_at_hand() or 2

    console = Console()
    session = requests.Session()
    session.trust_env = False  # the lab's networks are on this host: no proxy leads there
    start = time.monotonic()

    def step(number: int, text: str) -> None:
        console.print(Rule(f"{number} of 5   {text}   ({time.monotonic() - start:.0f} s)", align="left"))

    try:
        step(1, f"A lab of {nodes} node{'s' * (nodes > 1)}, the engine's wheels and two tiny models")
        prepare_lab(nodes, with_docker=True)
        site = write_site(nodes)
        # A demo before this one may have left the second model.
        step(2, f"ansible-playbook site.yml -i {site} -e model=inventory")
        play(console, site, "site.yml", {"model": "inventory"})
        first = served_models(session)
        console.print(f"Served now: {', '.join(first)}", highlight=False)
        step(3, f"ansible-playbook swap-model.yml -i {site} -e model={args.second_model}")
        play(console, site, "swap-model.yml", {"model": args.second_model})
        models = served_models(session)
        if not models:
            raise DemoError(f"{API}/v1/models lists no model after the swap.")
        step(4, f"A chat completion from {API}")
        answer = ask(session, models[0], QUESTION)
        console.print(
            f"  you   {QUESTION}\n  {answer.model}   {answer.text}\n"
            f"  ({answer.prompt_tokens} prompt tokens, {answer.completion_tokens} tokens in {answer.seconds:.1f} s)",
            markup=False,
            highlight=False,
        )
        step(5, "playbooks/status.yml")
        shown = play(console, site, "playbooks/status.yml")
        for event in shown.events:
            for line in event.result.get("screen", []):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    except (DemoError, requests.RequestException) as error:
        console.print(f"\nThe demo stopped: {error}", markup=False, highlight=False, style="red")
        console.print("The lab is left running: `make demo` continues from here, `make lab-down` removes it.")
        return 1
    console.print(Rule(align="left"))
    console.print(
        f"Done in {time.monotonic() - start:.0f} s. The lab keeps running:\n"
        f"  ask it        curl {API}/v1/models\n"
        f"  its status    .venv/bin/ansible-playbook playbooks/status.yml -i {site}\n"
        f"  look inside   .venv/bin/python -m lab shell gx10-1\n"
        f"  again         make demo   (uses what is there)\n"
        f"  stop it       make lab-down",
        markup=False,
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("The demo was interrupted; `make demo` continues from here, `make lab-down` removes the lab.")
