# SPDX-License-Identifier: Apache-2.0
"""The probe's modules and filter on a machine that knows nothing of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible.module_utils.basic import AnsibleModule
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


def test_a_rank_that_starts_is_read_from_its_journal(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = (Path(__file__).parents[2] / "fixtures" / "probe" / "native-start-head.journal.jsonl").read_text()
    invocation = json.loads(journal.splitlines()[-1])["_SYSTEMD_INVOCATION_ID"]
    shown = f"LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nInvocationID={invocation}\n"

    def run_command(_self: object, command: list[str], **_rest: Any) -> tuple[int, str, str]:
        program = command[0].rsplit("/", 1)[-1]
        if program == "systemctl":
            return 0, shown, ""
        if program == "docker":
            return 0, '[{"State": {"Running": true, "Pid": 1}, "Image": "sha256:1"}]', ""
        return (0, journal, "") if f"_SYSTEMD_INVOCATION_ID={invocation}" in command else (1, "", "")

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, **_rest: f"/usr/bin/{name}")
    rank = call(rank_state, **NOTHING, tail_lines=3)["rank"]
    assert (rank["state"], rank["log"]["phase"], rank["container"]["image_id"]) == ("running", "ready", "sha256:1")
    assert len(rank["tail"]) == 3
    assert rank["findings"] == []
