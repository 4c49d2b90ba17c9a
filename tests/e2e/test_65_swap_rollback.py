# SPDX-License-Identifier: Apache-2.0
"""A swap whose control node dies at each of its steps, and a node whose power is cut there: what serves in the end.

The lab and the stand-in engine of test_60_faults.py. What is measured goes to .lab/runs/swap_rollback.json;
docs/decisions/faults.md shows it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.faults import keep, kill_at
from tests.e2e.harness import REPO
from tests.e2e.standin import NODES, lab, on, play, play_command, play_environment, prepared, tokens, until

pytestmark = pytest.mark.soak

OWN_LAB = True
BEFORE, AFTER = "stand-native", "stand-ray"
STALL_S = 40
note = partial(keep, REPO / ".lab" / "runs" / "swap_rollback.json")

STEPS = (
    "Arm the rollback on the head",
    "Arm the rollback on the other nodes",
    "Stop the engines on every node",
    "Start the unit of this rank",
    "Verify every rank",
    "Commit the verified model on the head",
    "Commit the verified model on the other nodes",
    "End the swap on every node",
)
#: From here on the head may have committed: then all nodes serve the new model, else the one before.
COMMITS = STEPS[-3:]


@pytest.fixture(scope="module", autouse=True)
def lab_of_three(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bring up the lab with the stand-in's image and weights on it."""
    yield from prepared(request.config)


@pytest.fixture
def served() -> None:
    """Serve the model before, verified and without a swap that is not decided."""
    play("change", which="native")
    assert not pending()


def pending() -> list[int]:
    """Return the nodes on which a swap is not decided or not done."""
    return [node for node in NODES if on(node, "ls /var/lib/gb10/engine/swap.json", check=False)]


def serving() -> set[str]:
    """Return what systemd says on the nodes: running and enabled units, and the recorded model."""
    ask = (
        "systemctl list-units --plain --no-legend --state=active 'vllm-*' | awk '{print $1}'; echo /; "
        "systemctl list-unit-files --plain --no-legend --state=enabled 'vllm-*' | awk '{print $1}'; echo /; "
        "sed -n 's/.*\"model\": //p' /etc/gb10/engine/active.json"
    )
    return {" ".join(on(node, ask).split()) for node in NODES}


def expected(model: str) -> str:
    """Return what `serving` gives where a model is served, starts at boot and is recorded."""
    return f'vllm-{model}.service / vllm-{model}.service / "{model}",'


@pytest.mark.parametrize("power", [0, 1, 2], ids=["control-node", "head-too", "worker-too"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.usefixtures("served")
def test_all_nodes_serve_one_verified_model_in_the_end(step: str, power: int) -> None:
    command = play_command("change", which="ray", engine_swap_stall_seconds=str(STALL_S))
    kill_at(step, 0.5, command, play_environment(), REPO)
    start = time.monotonic()
    if power:
        lab("kill", str(power))
        lab("boot", str(power))

    until("no swap pending", lambda: not [node for node in pending() if not waits_for_unarmed(node)])
    decided = time.monotonic() - start
    until("a completion", tokens)
    again = time.monotonic() - start
    found = serving()
    note(f"{step}, {('control node', 'head too', 'worker too')[power]}", None, decided=decided, again=again,
         serves=sorted(found))  # fmt: skip
    allowed = {expected(BEFORE)} | ({expected(AFTER)} if step in COMMITS else set())
    assert len(found) == 1, found
    assert found <= allowed, found


def waits_for_unarmed(node: int) -> bool:
    """Return whether a node has done what was decided and waits for a report of nodes that were never armed.

    They have none to give; a node without power looks the same to the head, so the next run of a control node ends it.
    """
    return '"applied": true' in on(node, "cat /var/lib/gb10/engine/swap.json", check=False)
