# SPDX-License-Identifier: Apache-2.0
"""The control node dies in the middle of site.yml, again and again; the next run always goes on, and the last is whole.

Begins with nodes that have nothing but sshd. Each run is killed a moment after a step has begun, the one after it one
step later; what a run must not leave behind is looked at in between.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.demo import prepare_lab
from tests.e2e import harness
from tests.e2e.faults import kill_at
from tests.e2e.harness import NODES, REPO

pytestmark = pytest.mark.soak

MODEL = "tiny-qwen3"
#: A step of each role that changes something, in the order of site.yml, and how long the run goes on after it began.
STEPS = (
    ("host : Install configuration files", 0.5),
    ("host : Install missing packages", 4.0),
    ("fabric : Record the ports of the cluster for the engine", 0.3),
    ("edge : Load the nftables table with automatic rollback", 0.7),
    ("edge : Confirm the table", 0.5),
    ("image : Copy the build context", 10.0),
    ("image : Build", 20.0),
    ("image : Verify", 2.0),
    ("image : Pull the missing parts of the image", 15.0),
    ("weights : Serve and fetch", 0.8),
    ("weights : Transfer missing weights, in MiB", 0.4),
    ("engine : Write the unit and the launch description", 0.5),
    ("engine : Start the unit of this rank", 0.7),
    ("engine : Verify every rank", 15.0),
    ("engine : Commit the verified model on the head", 0.3),
    ("watch : Write the configuration and the units", 0.3),
)


def run_until(step: str, seconds: float) -> None:
    """Run site.yml and kill it, with all that it has started, some seconds after a step has begun."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", harness.INVENTORY, "site.yml"]
    env = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}
    kill_at(step, seconds, [*command, "-e", f"model={MODEL}"], env, REPO)


def leftovers(nodes: Sequence[str] = NODES) -> dict[str, str]:
    """Return what must not be there when nothing runs: ports, files and units of a transfer, half of a rule set."""
    ask = (
        "ss -Hltn | grep -E ':(508[0-9]|509[0-9]) ' | awk '{print $4}'; ls /var/lib/gb10/weights/.incoming "
        "/var/lib/gb10/incoming /var/lib/gb10/edge/pending* 2>/dev/null; systemctl list-units --plain --no-legend "
        "'gb10-*' | awk '$1 ~ /weights|image|rollback/ {print $1}'"
    )
    return {node: harness.node_exec(node, ask, check=False).stdout for node in nodes}


@pytest.fixture
def fresh_lab() -> None:
    """Give nodes that have nothing but sshd."""
    harness.lab("down")
    prepare_lab(nodes=len(NODES))


@pytest.mark.usefixtures("fresh_lab")
def test_a_controller_that_dies_at_every_step_of_site_leaves_what_the_next_run_heals() -> None:
    for step, seconds in STEPS:
        run_until(step, seconds)
    harness.run("site.yml", {"model": MODEL})
    assert harness.served_models() == [f"lab/{MODEL}"]
    assert harness.chat(f"lab/{MODEL}", "What is a GB10?")["usage"]["completion_tokens"] > 0
    for node in NODES:
        assert harness.containers_on(node) == [f"vllm-{MODEL}"]
        # The firewall that was closed twice and taken back in between is the one that was wanted.
        assert "policy drop" in harness.node_exec(node, "nft list table inet gb10").stdout
    harness.assert_converged(harness.run("site.yml", {"model": MODEL}))
    left = {node: found for node, found in leftovers().items() if found}
    assert not left, left
