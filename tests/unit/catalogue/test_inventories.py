# SPDX-License-Identifier: Apache-2.0
"""Inventories as owners have them: IPv6, names, a jump host, another user, one box, two clusters, some nodes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._engine import prestart

from .conftest import API_KEY, REPO, Run, Site
from .test_runs import LOCAL, sentences

MODEL = "nemotron-super"  # any that takes two nodes
ONE = "nemotron-nano"  # any that takes one


def write(place: Site, heads: Mapping[str, Any], workers: Mapping[str, Any], **variables: Any) -> None:
    """Give the site's inventory these hosts."""
    groups = {"head": {"hosts": heads}, "workers": {"hosts": workers}}
    document = {"all": {"vars": {"model": MODEL, **variables}, "children": {"gx10": {"children": groups}}}}
    (place.inventory / "hosts.yml").write_text(yaml.safe_dump(document), encoding="utf-8")


def calls(place: Site, run: Run) -> str:
    """Return the arguments with which ssh was called."""
    assert run.contacted, run.output
    return (place.folder / "contacted").read_text(encoding="utf-8")


def node(address: str, number: int, **more: Any) -> dict[str, Any]:
    return {"ansible_host": address, "gb10_fabric_address": f"192.168.100.{number}", **more}


def test_nodes_are_asked_by_ipv6_by_name_through_a_jump_host_and_as_another_user(
    site: Callable[[], Site], tmp_path: Path
) -> None:
    place, out = site(), tmp_path / "out"
    jump = {"ansible_ssh_common_args": "-o ProxyJump=ops@gate.lab.internal", "ansible_user": "ada"}
    first, second = "fd00:10::11", "spark-1a2b.lab.internal"
    write(place, {"gx10-1": node(first, 1, **jump)}, {"gx10-2": node(second, 2, **jump)})
    # An owner's inventory may name other machines too.
    (place.inventory / "others.yml").write_text("others: {hosts: {nas: {ansible_host: 10.7.7.7}}}\n", encoding="utf-8")

    run = place.run("validate.yml", "-e", f"model={MODEL}")
    assert run.returncode != 0, "nobody answers"
    asked = calls(place, run).splitlines()
    for address in (first, second):
        assert [line for line in asked if re.search(rf" {re.escape(address)} ", line)], asked
    for line in asked:
        assert "-o ProxyJump=ops@gate.lab.internal" in line
        assert re.search(r'-o User="?ada"? ', line), line
        assert "10.7.7.7" not in line

    run = place.run("render.yml", "-e", f"model={MODEL}", "-e", f"model_render_dir={out}", VLLM_API_KEY=API_KEY)
    assert run.returncode == 0, run.output
    contents = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert contents
    assert not [text for text in contents if first.encode() in text or second.encode() in text], (
        "engines use the fabric"
    )


def test_one_box_needs_no_address_of_its_own(site: Callable[[], Site], tmp_path: Path) -> None:
    """Whatever it is reached by, also through a translation of addresses: its engine starts on its loopback."""
    place, out = site(), tmp_path / "out"
    write(place, {"gx10-1": {"ansible_host": "spark-1a2b.local"}}, {}, model=ONE)
    run = place.run("render.yml", "-e", f"model_render_dir={out}", VLLM_API_KEY=API_KEY)
    assert run.returncode == 0, run.output
    launch = json.loads((out / f"gx10-1/etc/gb10/engine/{ONE}.json").read_text(encoding="utf-8"))
    listing = subprocess.run(["ip", "-json", "address"], capture_output=True, check=True).stdout
    assert prestart.interface_of(launch["address"], json.loads(listing)) == "lo"


@pytest.mark.parametrize("playbook", ["serve.yml", "provision.yml"])
def test_two_clusters_in_one_inventory_are_refused_before_a_node_is_asked(
    site: Callable[[], Site], playbook: str
) -> None:
    place = site()
    first, second = {"a-1": node("10.1.1.1", 1), "b-1": node("10.1.2.1", 3)}, {"a-2": node("10.1.1.2", 2)}
    write(place, first, second)
    run = place.run(playbook)
    assert run.returncode != 0
    assert (
        "Group 'head' must hold exactly one host, found 2: a-1, b-1. An inventory is one cluster; give each cluster a "
        "directory of its own" in sentences(run.output)
    ), run.output
    assert not run.contacted


PLAY = """
- hosts: gx10
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: gb10.cluster.model, tasks_from: plan}
      tags: [always]
    - ansible.builtin.import_role: {name: gb10.cluster.engine}
"""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--limit", "gx10-1,gx10-2"),
            "is changed on all of its nodes or on none, and this run leaves out gx10-3: remove --limit.",
        ),
        ((), ""),
    ],
    ids=["a-node-that-serves", "all"],
)
def test_an_engine_is_not_changed_on_a_part_of_its_nodes(
    site: Callable[[], Site], arguments: tuple[str, ...], sentence: str
) -> None:
    place = site()
    play = place.folder / "engine.yml"
    play.write_text(PLAY, encoding="utf-8")
    (place.folder / "group_vars").symlink_to(REPO / "playbooks" / "group_vars")
    write(place, {"gx10-1": node("10.1.1.1", 1)}, {f"gx10-{each}": node(f"10.1.1.{each}", each) for each in (2, 3)})
    # What the head has on record: it served on three nodes.
    known = {"gb10_model": {"model": MODEL, "recorded": {"model": "other", "members": ["gx10-1", "gx10-2", "gx10-3"]}}}
    image = {"gb10_image": {"vllm_version": "0.22.1", "tag": "t", "python": "python3", "fingerprint": "0" * 12}}
    # The tag goes as far as the command line of each rank; nothing is written or asked.
    run = place.run(
        str(play), *arguments, *LOCAL, "-e", json.dumps({**known, **image}), "-e", f"model={MODEL}",
        "-e", "gb10_api_key=k", "-e", "engine_config_check=false", "--tags", "engine_preflight",
    )  # fmt: skip
    assert (run.returncode != 0) is bool(sentence), run.output
    assert sentence in sentences(run.output)


#: Playbooks that take no lease, one for each way into a role, with a list that its command line gives as text.
WITHOUT_LEASE = {
    "add_model.yml": "engine_devices=a,b",
    "doctor.yml": "doctor_nodes=gx10-1,gx10-2",
    "dynamo.yml": "dynamo_catalogue=a,b",
    "dynamo_delete.yml": "dynamo_catalogue=a,b",
    "dynamo_render.yml": "dynamo_node_selector=a=b",
    "import_recipe.yml": "engine_devices=a,b",
    "init.yml": "init_names=a,b",
    "validate.yml": "fabric_nodes=gx10-1,gx10-2",
}


@pytest.mark.parametrize("playbook", WITHOUT_LEASE)
def test_a_list_that_is_text_is_refused_before_anything_is_read(site: Callable[[], Site], playbook: str) -> None:
    place, given = site(), WITHOUT_LEASE[playbook]
    place.addresses()
    name = given.partition("=")[0]
    more = ("-e", "dynamo_namespace=ours", "-e", f"render_dir={place.folder / 'out'}", "-e", "add_model_memory_gib=119")
    run = place.run(playbook, "-e", given, "-e", "target=agg-b200-chat-mtp", "-e", "nodes=10.255.255.1", *more)
    assert run.returncode != 0
    assert f'-e {name}=… is text, where a list or an object is needed: give -e \'{{"{name}": ' in sentences(run.output)
    assert not run.contacted


def test_every_playbook_goes_one_of_these_ways() -> None:
    """By the plan, the lease, the check of an inventory or an action of the control node: each looks for text first."""
    ways = ("plan.yml", "lease.yml", "tasks_from: inventory", "tasks_from: render", "gb10.cluster.dynamo")
    for path in sorted((REPO / "playbooks").glob("*.yml")):
        if path.name not in (*WITHOUT_LEASE, "lease.yml", "plan.yml"):
            assert any(way in path.read_text(encoding="utf-8") for way in ways), path
