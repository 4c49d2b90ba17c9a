# SPDX-License-Identifier: Apache-2.0
"""The probe's modules and filter on a machine that knows nothing of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.filter import probe as probe_filter
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import EngineLog
from ansible_collections.gb10.cluster.plugins.modules import health_probe, rank_state

NOTHING = {"name": "no-such-model-anywhere", "node": "gx10-1"}
CLOSED = {**NOTHING, "served_name": "x", "url": "http://127.0.0.1:9"}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs a module's main and returns what it printed."""

    def run(module: ModuleType, *, check: bool = False, **options: Any) -> dict[str, Any]:
        with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit) as ended:
            module.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert (ended.value.code == 0) is not found.get("failed", False)
        return found

    return run


@pytest.mark.parametrize("check", [False, True])
def test_a_rank_that_is_not_there_is_absent(call: Any, check: bool) -> None:
    found = call(rank_state, check=check, **NOTHING)
    assert not found["changed"]
    assert (found["rank"]["state"], found["rank"]["node"]) == ("absent", "gx10-1")
    assert found["rank"]["unit"]["name"] == "vllm-no-such-model-anywhere.service"
    assert found["rank"]["mem_total_gib"] > 0
    assert len(found["pulse"]) == 4


def test_a_changed_pulse_ends_the_poll_at_once(call: Any) -> None:
    found = call(rank_state, **NOTHING, poll_seconds=30, seen_pulse=["active", "running", "0", "another-run"])
    assert found["rank"]["state"] == "absent"


def test_a_probe_of_nothing_is_absent_and_does_not_fail(call: Any) -> None:
    found = call(health_probe, **CLOSED)
    assert (found["state"], found["api"]["health"], found["api"]["health_error"]) == ("absent", 0, "refused")
    assert found["warnings_found"] == []


def test_waiting_for_nothing_fails_at_once_with_a_sentence(call: Any) -> None:
    found = call(health_probe, **CLOSED, wait=True, poll_seconds=0.1)
    assert (found["failed"], found["msg"]) == (True, "No rank is started.")


def test_in_check_mode_it_neither_waits_nor_fails(call: Any) -> None:
    assert call(health_probe, check=True, **CLOSED, wait=True)["state"] == "absent"


def test_the_key_is_not_in_the_result(call: Any) -> None:
    found = call(health_probe, **CLOSED, api_key="open-sesame-please")
    assert "open-sesame-please" not in json.dumps(found)


def test_the_filter_merges_reports() -> None:
    report = {
        "node": "gx10-1",
        "state": "running",
        "unit": {},
        "log": EngineLog(phase="load").as_dict(),
        "findings": [],
    }
    merged = probe_filter.FilterModule().filters()["cluster_state"]([report], "gx10-1", {"health": 0})
    assert (merged["state"], merged["progress"]) == ("starting", "loading weights")


def test_the_filter_names_what_is_missing() -> None:
    with pytest.raises(AnsibleFilterError, match="no report of the head 'gx10-1'"):
        probe_filter.cluster_state([], "gx10-1")
