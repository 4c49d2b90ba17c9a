# SPDX-License-Identifier: Apache-2.0
"""Whose variables set what is healthy on a node, and what a node's registers become."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.gather import (
    NOT_PART,
    VARIABLES,
    node_limits,
    node_report,
    role_defaults,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.report import Limits


def nothing(_variable: str) -> Any:
    """Say that this run sets nothing."""
    return None


def test_every_limit_has_a_variable_with_a_default_in_its_role() -> None:
    assert set(VARIABLES) == {field.name for field in fields(Limits)}
    for variable in VARIABLES.values():
        assert variable in role_defaults(variable.partition("_")[0])


def test_the_defaults_of_the_roles_count_where_nothing_is_said() -> None:
    limits = node_limits({}, nothing)
    assert limits.mtu_bytes == role_defaults("fabric")["fabric_mtu"]
    assert limits.open_ports == tuple(role_defaults("doctor")["doctor_open_ports"])
    assert limits.earlyoom is role_defaults("host")["host_earlyoom"]


@pytest.mark.parametrize(
    ("own", "run", "mtu"),
    [({"fabric_mtu": 1500}, {"fabric_mtu": 4200}, 1500), ({}, {"fabric_mtu": 4200}, 4200), ({"fabric_mtu": 0}, {}, 0)],
)
def test_a_node_wins_over_the_run_and_the_run_over_the_default(
    own: dict[str, Any], run: dict[str, Any], mtu: int
) -> None:
    assert node_limits(own, run.get).mtu_bytes == mtu


def test_a_former_name_counts_where_the_present_one_is_not_set() -> None:
    assert node_limits({"doctor_clock_skew_s": 2.5}, nothing).clock_skew_s == 2.5
    assert node_limits({"doctor_clock_skew_s": 2.5, "doctor_clock_skew_seconds": 1.0}, nothing).clock_skew_s == 1.0


def test_ports_may_come_as_text() -> None:
    assert node_limits({"doctor_open_ports": ["22", 9100]}, nothing).open_ports == (22, 9100)


def test_a_node_that_answered() -> None:
    own = {
        "__doctor_node": {"node": {"os": {}}, "changed": False},
        "__doctor_fabric": {"machine": {}},
        "__doctor_ping": {"peers": {}},
        "__doctor_skew": {"skew_s": 0.0},
        "__doctor_slow": ["gx10-1 to gx10-2: slow"],
        "__doctor_sent": {"gx10-2": {"gbps": 12.9}},
    }
    assert node_report(own) == {
        "node": {"os": {}},
        "error": NOT_PART,
        "fabric": {"machine": {}},
        "ping": {"peers": {}},
        "skew": {"skew_s": 0.0},
        "slow": ["gx10-1 to gx10-2: slow"],
        "sent": {"gx10-2": {"gbps": 12.9}},
    }


@pytest.mark.parametrize(
    ("own", "error"),
    [
        ({}, NOT_PART),
        ({"__doctor_node": {"unreachable": True, "msg": "No route to host"}}, "No route to host"),
    ],
)
def test_a_node_that_did_not(own: dict[str, Any], error: str) -> None:
    report = node_report({**own, "__doctor_ping": {"skipped": True}, "__doctor_fabric": {"failed": True}})
    assert (report["node"], report["error"], report["ping"], report["fabric"]) == ({}, error, {}, {})
