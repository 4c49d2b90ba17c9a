# SPDX-License-Identifier: Apache-2.0
"""What `make demo` runs: from no lab at all to a served model, a swap and a completion.

    python -m lab.demo [--nodes 4] [--second-model tiny-nemotronh]

Everything that a second run needs is kept (nodes, wheels, models, images), so it goes straight
through to the completion.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import requests
from rich.console import Console
from rich.rule import Rule

from lab.engine_wheels import BASE_TAR
from lab.runs import REPO, RunResult, run_playbook

INVENTORY = "inventories/lab"
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


def play(console: Console, playbook: str, extravars: dict[str, Any] | None = None) -> RunResult:
    """Run a playbook on the lab; raise DemoError when it fails."""
    result = run_playbook(playbook, INVENTORY, extravars, console=console)
    if result.rc != 0:
        raise DemoError(f"{playbook} failed: {result.describe()}")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description="From no lab to a served, swapped model.")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--second-model", default="tiny-nemotronh")
    args = parser.parse_args(argv)

    console = Console()
    session = requests.Session()
    session.trust_env = False  # the lab's networks are on this host: no proxy leads there
    start = time.monotonic()

    def step(number: int, text: str) -> None:
        console.print(Rule(f"{number} of 5   {text}   ({time.monotonic() - start:.0f} s)", align="left"))

    try:
        step(1, f"A lab of {args.nodes} nodes, the engine's wheels and two tiny models")
        prepare_lab(args.nodes, with_docker=True)
        # A demo before this one may have left the second model.
        step(2, f"ansible-playbook site.yml -i {INVENTORY} -e model=inventory")
        play(console, "site.yml", {"model": "inventory"})
        first = served_models(session)
        console.print(f"Served now: {', '.join(first)}", highlight=False)
        step(3, f"ansible-playbook swap-model.yml -i {INVENTORY} -e model={args.second_model}")
        play(console, "swap-model.yml", {"model": args.second_model})
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
        shown = play(console, "playbooks/status.yml")
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
