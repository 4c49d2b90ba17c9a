# SPDX-License-Identifier: Apache-2.0
"""The collection kubernetes.core as an independent witness of what this one puts into a cluster."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import difference, render
from benchmarks.dynamo import target
from tests.kube.conftest import Kube

REPO = Path(__file__).resolve().parents[2]
SPACE = "witness"


def task(kube: Kube, tmp_path: Path, module: str, **arguments: Any) -> dict[str, Any]:
    """Run one task of kubernetes.core on this machine and return its result."""
    given = {"kubeconfig": str(kube.api.kubeconfig), **arguments}
    result = tmp_path / "result.json"
    tasks = [
        {"name": "Run the task", f"kubernetes.core.{module}": given, "register": "done"},
        {
            "name": "Keep its result",
            "ansible.builtin.copy": {"dest": str(result), "content": "{{ done | to_json }}", "mode": "0600"},
        },
    ]
    play = [
        {"name": "Ask a witness", "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
    env = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "NO_COLOR": "1"}
    done = subprocess.run(
        ["ansible-playbook", str(tmp_path / "play.yml")],
        capture_output=True, text=True, check=False, cwd=REPO, env=env, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def made(kube: Kube) -> dict[str, Any]:
    kube.api.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    return render.graph(target(SPACE))


def test_a_witness_reads_each_value_that_was_applied(kube: Kube, tmp_path: Path, made: dict[str, Any]) -> None:
    kube.api.cluster.apply(made)
    found = task(
        kube, tmp_path, "k8s_info", api_version=made["apiVersion"], kind=made["kind"], namespace=SPACE,
        name=made["metadata"]["name"],
    )["resources"]  # fmt: skip
    assert [each["metadata"]["name"] for each in found] == [made["metadata"]["name"]]
    assert found[0]["spec"] == made["spec"]
    assert found[0]["metadata"]["labels"] == made["metadata"]["labels"]
    assert {each["manager"] for each in found[0]["metadata"]["managedFields"]} >= {"gb10.cluster"}


def test_an_apply_without_a_difference_is_no_change_here(
    kube: Kube, tmp_path: Path, made: dict[str, Any], record_property: Any
) -> None:
    kube.api.cluster.apply(made)
    live = kube.api.cluster.get(made["kind"], made["metadata"]["name"], SPACE)
    assert not difference.differs(live, kube.api.cluster.apply(made, dry_run=True))
    theirs = [
        task(
            kube,
            tmp_path,
            "k8s",
            definition=made,
            apply=True,
            server_side_apply={"field_manager": "witness", "force_conflicts": True},
        )["changed"]
        for _again in range(2)
    ]
    # Said, not required: a newer server or a newer release of theirs may answer otherwise.
    record_property("kubernetes.core.k8s with server_side_apply, second run changed", str(theirs[1]))
    print(f"kubernetes.core.k8s with server_side_apply reports changed={theirs[1]} where nothing differs")
