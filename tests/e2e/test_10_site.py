# SPDX-License-Identifier: Apache-2.0
"""The main job on four nodes, two of which have nothing but sshd: checked, refused, served, converged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.by_init import inventory_by_init
from tests.e2e.harness import HEAD, NODES
from tests.lint.collection import build, install

MODEL = "tiny-qwen3"
SERVED = "lab/tiny-qwen3"
UNIT = f"vllm-{MODEL}.service"


#: Provisioned by an earlier run, which left the others out.
PROVISIONED = ("gx10-2", "gx10-4")
FRESH = tuple(node for node in NODES if node not in PROVISIONED)


def test_check_mode_passes_on_nodes_of_which_some_are_provisioned_and_changes_none() -> None:
    harness.run("playbooks/provision.yml", limit=",".join(PROVISIONED))
    kept = "find /etc/gb10 /var/lib/gb10 /etc/systemd/system | sort; command -v dockerd"
    before = harness.on_all(kept, check=False)

    result = harness.run("site.yml", check=True, diff=True)

    assert set(result.stats) >= set(NODES)
    assert harness.on_all(kept, check=False) == before
    for node in NODES:
        assert bool(before[node].rc) is (node in FRESH), before[node]
    for node in FRESH:
        assert harness.node_exec(node, "ls -A /etc/gb10 /var/lib/gb10", check=False).stdout == ""


@pytest.mark.parametrize("net", ["fabric", "mgmt"])
def test_a_cut_link_fails_before_any_change_and_is_named(net: str) -> None:
    harness.lab("cut", "gx10-3", "--net", net)
    try:
        result = harness.run("site.yml", ok=False)
    finally:
        harness.lab("heal", "gx10-3", "--net", net)

    assert result.changed_tasks() == []
    assert "gx10-3" in "\n".join(f"{failure.host} {failure.message}" for failure in result.failures())
    for node in FRESH:
        assert harness.node_exec(node, "command -v dockerd", check=False).rc != 0


def test_site_serves_the_model_on_four_ranks() -> None:
    harness.run("site.yml")

    assert harness.served_models() == [SERVED]
    answer = harness.chat(SERVED, "What is a GB10?")
    assert answer["usage"]["completion_tokens"] > 0
    for node in NODES:
        assert harness.containers_on(node) == [f"vllm-{MODEL}"]
        assert harness.unit_state(node, UNIT)["ActiveState"] == "active"
        assert harness.unit_state(node, UNIT)["UnitFileState"] == "enabled"


def test_the_engine_is_the_real_one_and_each_node_holds_a_rank() -> None:
    probe = "import torch, vllm, importlib.metadata as m; print(torch.__version__, m.version('vllm'))"
    for rank, node in enumerate(NODES):
        run = harness.node_exec(node, f'docker exec vllm-{MODEL} /opt/vllm/bin/python -c "{probe}"')
        assert run.stdout.split() == ["2.13.0+cpu", "0.32.0+cpu"]
        command = harness.node_exec(node, f"docker inspect vllm-{MODEL} --format '{{{{json .Args}}}}'").stdout
        args = json.loads(command)
        assert args[args.index("--tensor-parallel-size") + 1] == "4"
        assert args[args.index("--node-rank") + 1] == str(rank)


def test_every_node_holds_the_same_layers() -> None:
    layers = {
        harness.node_exec(
            node,
            f"docker inspect $(docker inspect vllm-{MODEL} --format '{{{{.Image}}}}') "
            "--format '{{json .RootFS.Layers}}'",
        ).stdout
        for node in NODES
    }
    assert len(layers) == 1


def test_every_node_holds_the_same_weights() -> None:
    sums = {
        harness.node_exec(node, "cd /var/lib/gb10/weights/gb10-lab/tiny-qwen3 && sha256sum *.safetensors *.json").stdout
        for node in NODES
    }
    assert len(sums) == 1
    assert "safetensors" in sums.pop()


def test_no_port_of_the_transfers_is_left_open() -> None:
    for node in NODES:
        ports = {line.split()[3] for line in harness.node_exec(node, "ss -Hltn").lines}
        assert not [port for port in ports if port.endswith((":5080", ":5081", ":5000", ":80"))]
    # Services alone: the watch's timer and path are "running" as well while a check of theirs is under way.
    units = harness.node_exec(HEAD, "systemctl list-units --type=service --state=running --no-legend --plain 'gb10-*'")
    assert [line.split()[0] for line in units.lines] == ["gb10-edge.service"]


def test_the_engine_is_reached_through_the_proxy_alone() -> None:
    """Other paths of the engine are closed, and its own port listens on loopback."""
    listening = {line.split()[3] for line in harness.node_exec(HEAD, "ss -Hltn").lines}
    assert {"0.0.0.0:8000", "127.0.0.1:29602"} <= listening
    assert not [address for address in listening if address.endswith(":29602") and address != "127.0.0.1:29602"]
    ask = (
        "import http.client, sys\n"
        "for port, path in ((29602, '/load'), (8000, '/load'), (8000, '/metrics')):\n"
        "    connection = http.client.HTTPConnection('127.0.0.1', port)\n"
        "    connection.request('GET', path)\n"
        "    print(port, path, connection.getresponse().status)"
    )
    assert harness.node_exec(HEAD, ["python3", "-c", ask]).lines == [
        "29602 /load 200",
        "8000 /load 404",
        "8000 /metrics 200",
    ]


def test_the_environment_file_is_roots_alone() -> None:
    for node in NODES:
        assert harness.node_exec(node, f"stat -c '%a %U' /etc/gb10/engine/{MODEL}.env").stdout.split() == [
            "600",
            "root",
        ]


def test_a_run_with_the_inventory_of_init_from_the_installed_collection_changes_nothing(tmp_path: Path) -> None:
    """Without the clone's ansible.cfg and playbooks, as after `ansible-galaxy collection install`."""
    inventory = inventory_by_init(tmp_path, MODEL)
    env = install(build(tmp_path), tmp_path / "installed")
    restarts = {node: harness.unit_state(node, UNIT)["ExecMainStartTimestampMonotonic"] for node in NODES}

    result = harness.run("gb10.cluster.site", inventory=inventory, env=env, cwd=tmp_path)

    harness.assert_converged(result)
    assert restarts == {node: harness.unit_state(node, UNIT)["ExecMainStartTimestampMonotonic"] for node in NODES}


def test_check_mode_on_a_converged_cluster_finds_nothing_to_change() -> None:
    harness.assert_converged(harness.run("site.yml", check=True, diff=True))


def test_an_unknown_model_lists_the_known_ones() -> None:
    result = harness.run("swap-model.yml", {"model": "tiny-qwen4"}, ok=False)

    message = "\n".join(result.failed_messages())
    assert "Did you mean 'tiny-qwen3'?" in message
    for known in ("tiny-nemotronh", "qwen397", "nemotron-ultra"):
        assert known in message
    assert harness.served_models() == [SERVED]


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    result = harness.run("swap-model.yml", {"model_overrides": {"servd_name": "x"}}, ok=False)

    assert "Did you mean 'served_name'?" in "\n".join(result.failed_messages())
    assert harness.served_models() == [SERVED]
