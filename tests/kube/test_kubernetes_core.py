# SPDX-License-Identifier: Apache-2.0
"""The collection kubernetes.core as an independent witness of what this one puts into a cluster."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import difference, render
from benchmarks.dynamo import target
from tests.kube.conftest import Kube

REPO = Path(__file__).resolve().parents[2]


def asked(kube: Kube, tmp_path: Path, *tasks: dict[str, Any]) -> list[dict[str, Any]]:
    """Run tasks of kubernetes.core on this machine and return their results."""
    kept = tmp_path / "results.json"
    given = {"module_defaults": {"group/kubernetes.core.k8s": {"kubeconfig": str(kube.api.kubeconfig)}}}
    made = [{"name": f"Ask {number}", **each, "register": f"r{number}"} for number, each in enumerate(tasks)]
    results = f"{{{{ [{', '.join(f'r{number}' for number in range(len(tasks)))}] | to_json }}}}"
    keep = {"name": "Keep the results", "ansible.builtin.copy": {"dest": str(kept), "content": results, "mode": "0600"}}
    play = {"name": "Ask a witness", "hosts": "localhost", "connection": "local", "gather_facts": False, **given}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([{**play, "tasks": [*made, keep]}]), encoding="utf-8")
    env = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "NO_COLOR": "1"}
    done = subprocess.run(
        ["ansible-playbook", str(tmp_path / "play.yml")],
        capture_output=True, text=True, check=False, cwd=REPO, env=env, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def test_a_witness_reads_each_value_and_would_change_none(kube: Kube, space: str, tmp_path: Path) -> None:
    made = render.graph(target(space))
    kube.api.cluster.apply(made)
    where = {"api_version": made["apiVersion"], "kind": made["kind"], "namespace": space}
    read, would, other = asked(
        kube,
        tmp_path,
        {"kubernetes.core.k8s_info": {**where, "name": made["metadata"]["name"]}},
        {"kubernetes.core.k8s": {"definition": made}, "check_mode": True},
        {"kubernetes.core.k8s": {"definition": {**made, "spec": {"backendFramework": "sglang"}}}, "check_mode": True},
    )
    (found,) = read["resources"]
    assert found["spec"] == made["spec"]
    assert found["metadata"]["labels"] == made["metadata"]["labels"]
    assert "gb10.cluster" in {each["manager"] for each in found["metadata"]["managedFields"]}
    assert (would["changed"], other["changed"]) == (False, True)
    live = kube.api.cluster.get(made["kind"], made["metadata"]["name"], space)
    assert not difference.differs(live, kube.api.cluster.apply(made, dry_run=True))
