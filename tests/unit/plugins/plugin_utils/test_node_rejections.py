# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._node.rejections import rejections


def test_rejections() -> None:
    applied: dict[str, dict[str, Any]] = {
        "n1": {"pending": True},
        "n2": {"unreachable": True, "msg": "timeout"},
        "n3": {"msg": "netplan refuses the plan."},
        "n4": {"pending": True},
    }
    reached: dict[str, dict[str, Any]] = {"n1": {}, "n2": {}, "n3": {}, "n4": {"msg": "timed out"}}
    assert rejections(["n1", "n2", "n3", "n4", "n5"], applied, reached) == [
        "n2: the connection broke during the change.",
        "n3: netplan refuses the plan.",
        "n4: no new SSH connection was possible after the change.",
        # It has no result at all.
        "n5: the connection broke during the change.",
    ]
    assert rejections(["n1"], {"n1": {"pending": True}}, {"n1": {"elapsed": 0}}) == []


def test_a_node_that_can_no_longer_be_reached_is_reported_as_such() -> None:
    lost = {"n1": {"unreachable": True}}
    assert rejections(["n1"], lost, lost) == ["n1: no new SSH connection was possible after the change."]
