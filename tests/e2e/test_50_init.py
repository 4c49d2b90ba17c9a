# SPDX-License-Identifier: Apache-2.0
"""What `init` writes for one and for two boxes, site.yml serves as it is; test_10_site.py has four."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.by_init import inventory_by_init, tiny_model
from tests.e2e.harness import NODES

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module", autouse=True)
def nothing_served() -> None:
    """Stop what the tests before left served: its ranks are on nodes that these inventories do not have."""
    harness.stop_what_serves()


# One box first: the second inventory adds a box to a cluster that serves.
@pytest.mark.parametrize("boxes", [1, 2])
def test_the_inventory_of_init_is_served_without_an_edit(boxes: int, tmp_path: Path) -> None:
    model = tiny_model(boxes)
    name, served = model["model_spec"]["name"], model["model_spec"]["served_name"]
    members = NODES[:boxes]
    inventory = inventory_by_init(tmp_path, name, members, [model])
    written = (inventory / "hosts.yml").read_bytes()

    # These nodes have served other models, and without a name a run goes on with the last of them.
    result = harness.run("site.yml", {"model": "inventory"}, inventory=inventory)

    assert set(result.stats) & set(NODES) == set(members)
    assert harness.served_models() == [served]
    assert harness.chat(served, "What is a GB10?")["usage"]["completion_tokens"] > 0
    for node in NODES:
        assert harness.containers_on(node) == ([f"vllm-{name}"] if node in members else [])
    args = json.loads(
        harness.node_exec(members[-1], f"docker inspect vllm-{name} --format '{{{{json .Args}}}}'").stdout
    )
    assert args[args.index("--tensor-parallel-size") + 1] == str(boxes)
    assert (inventory / "hosts.yml").read_bytes() == written
